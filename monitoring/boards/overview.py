"""Whether all is well, on one page."""

from deployments.metrics import names
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS, RARE
from monitoring.grafana import Dashboard, Panel, Query, Row

LIVE = Panel(
    "Live jobs",
    "short",
    (Query(Q.now(names.JOBS_LIVE)),),
    "Jobs that wait or are worked on now.",
    kind="number",
    width=4,
)
UNACCOUNTED = Panel(
    "Jobs unaccounted for",
    "short",
    (Query(f"abs({Q.now(names.JOBS_UNACCOUNTED)})"),),
    "Accepted minus ended minus live jobs. Anything but 0 is a defect.",
    kind="number",
    width=4,
    red_from=1,
)
COMPLETED = Panel(
    "Completed in an hour",
    "short",
    (Query(Q.risen(names.JOBS_ENDED, window=RARE, state="completed")),),
    "Videos that were made in the last hour.",
    kind="number",
    width=4,
)
FAILED = Panel(
    "Failed in an hour",
    "short",
    (Query(Q.risen(names.JOBS_ENDED, window=RARE, state="failed")),),
    "Jobs that failed in the last hour; below by the code of their error.",
    kind="number",
    width=4,
    red_from=1,
)
SAMPLERS = Panel(
    "Samplers",
    "short",
    (Query(Q.now(names.REPLICAS, stage="sampling")),),
    "Replicas that announce themselves. Without any, no video is made.",
    kind="number",
    width=4,
)
FULLEST_DISK = Panel(
    "Fullest disk",
    "percentunit",
    (Query(Q.now(names.DISK_USED)),),
    "Of all machines: the data folder, models, temporary files.",
    kind="number",
    width=4,
    red_from=0.9,
)
JOBS_OVER_TIME = Panel(
    "Jobs accepted and ended, in five minutes",
    "short",
    (
        Query(Q.risen(names.JOBS_ACCEPTED, window="5m"), "accepted"),
        Query(Q.risen(names.JOBS_ENDED, "state", window="5m"), "{{state}}"),
    ),
    "Where more are accepted than end, the queue grows.",
)
STATES = Panel(
    "Live jobs by state",
    "short",
    (Query(Q.now(names.JOBS_LIVE, "state"), "{{state}}"),),
    "Where jobs stand. Many in one stage and few in those behind it: that stage is the narrow one.",
    kind="areas",
)
WAIT = Panel(
    "Wait that 95 % stay below",
    "s",
    (Query(Q.quantile(0.95, names.JOB_WAIT, "tier", window=JOBS), "{{tier}}"),),
    "From acceptance to the first replica, of jobs that ended in the last half hour.",
)
END_TO_END = Panel(
    "From acceptance to the video",
    "s",
    (
        Query(Q.quantile(0.5, names.JOB_END_TO_END, "tier", window=JOBS), "{{tier}}, half"),
        Query(Q.quantile(0.95, names.JOB_END_TO_END, "tier", window=JOBS), "{{tier}}, 95 %"),
    ),
    "What half of the jobs, and 95 of 100, stay below.",
)
BUSY = Panel(
    "Busy share of the stages",
    "percentunit",
    (
        Query(
            f"{Q.rate(names.BUSY_SECONDS, 'stage', window='5m')} / ({Q.now(names.REPLICAS, 'stage')} > 0)", "{{stage}}"
        ),
    ),
    "The part of the time in which a stage's replicas work on their devices. Near 1 it has no room left.",
)
FAILURES = Panel(
    "Failed jobs and retries by code, in an hour",
    "short",
    (
        Query(Q.risen(names.JOBS_FAILED, "code", window=RARE), "failed: {{code}}"),
        Query(Q.risen(names.RETRIES, "code", window=RARE), "again: {{code}}"),
    ),
    "docs/api.md says what each code means. Retries cost time and no job.",
)


def _answers(status: str) -> str:
    """0 before the first of these."""
    return f"{Q.rate(names.HTTP_REQUESTS, status=status)} or 0 * {Q.rate(names.HTTP_REQUESTS)}"


SERVER_ERRORS = Panel(
    "Answers of the API, a second",
    "reqps",
    (
        Query(_answers("~2..|3.."), "taken"),
        Query(_answers("~4.."), "refused (4xx)"),
        Query(_answers("~5.."), "failed (5xx)"),
    ),
    "5xx: the server, its database or its queue; 503 while a part starts again is normal.",
)
STEPS = Panel(
    "Denoising steps, a second",
    "short",
    (
        Query(Q.rate(names.STEPS_RUN), "run"),
        Query(Q.rate(names.STEPS_REPEATED), "of those lost"),
    ),
    "The work itself. Lost steps are run once more, after the death of a replica.",
)
GPU_HOURS = Panel(
    "Devices in use by tenant",
    "short",
    (Query(Q.rate(names.GPU_SECONDS, "tenant", window=JOBS), "{{tenant}}"),),
    "GPU-seconds a second, and so GPUs, that each tenant's jobs take.",
    kind="areas",
)

OVERVIEW = Dashboard(
    "overview",
    "overview",
    "Whether videos are made, how long they wait, and what fails.",
    (
        Row("Now", (LIVE, COMPLETED, FAILED, UNACCOUNTED, SAMPLERS, FULLEST_DISK)),
        Row("Jobs", (JOBS_OVER_TIME, STATES, WAIT, END_TO_END, FAILURES, SERVER_ERRORS)),
        Row("Work", (BUSY, STEPS, GPU_HOURS)),
    ),
)
