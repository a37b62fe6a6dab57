"""Who waits, for how long, and whether the tenants get their shares."""

from deployments.metrics import names
from monitoring.boards.common import BOARD as Q
from monitoring.boards.common import JOBS
from monitoring.grafana import Dashboard, Panel, Query, Row

BY_TIER = Panel(
    "Waiting jobs by tier",
    "short",
    (Query(Q.now(names.QUEUE_JOBS, "tier"), "{{tier}}"),),
    "Jobs that wait for a slot of a stage.",
    kind="areas",
)
BY_TENANT = Panel(
    "Waiting jobs by tenant",
    "short",
    (Query(Q.now(names.QUEUE_JOBS, "tenant"), "{{tenant}}"),),
    "A tenant with many delays its own jobs and not those of others.",
    kind="areas",
)
WORK = Panel(
    "Work that waits, by tenant",
    "s",
    (Query(Q.now(names.QUEUE_GPU_SECONDS, "tenant"), "{{tenant}}"),),
    "Estimated seconds of devices, all stages. Divided by the samplers it is how far behind they are.",
    kind="areas",
)
OLDEST = Panel(
    "The longest wait now, by tier",
    "s",
    (
        Query(Q.now(names.QUEUE_OLDEST_WAIT, "tier"), "{{tier}}"),
        Query(Q.now(names.TARGET_WAIT, "tier"), "target of {{tier}}"),
    ),
    "Of the job that may be claimed for the longest time, beside scheduling.target_wait_s.",
)
OLDEST_OF_TENANT = Panel(
    "The longest wait now, by tenant",
    "s",
    (Query(Q.now(names.QUEUE_OLDEST_WAIT, "tenant"), "{{tenant}}"),),
    "Who waits, while others do not: look at the weights and limits of tenants.",
)
WAITED = Panel(
    "Waits of ended jobs",
    "s",
    (
        Query(Q.quantile(0.5, names.JOB_WAIT, "tier", window=JOBS), "{{tier}}, half"),
        Query(Q.quantile(0.95, names.JOB_WAIT, "tier", window=JOBS), "{{tier}}, 95 %"),
    ),
    "From acceptance to the first replica: what half of the jobs, and 95 of 100, stay below.",
)
SHARES = Panel(
    "Shares of the devices",
    "percentunit",
    (
        Query(
            f"{Q.rate(names.GPU_SECONDS, 'tenant', window=JOBS)} / on () group_left () "
            f"({Q.rate(names.GPU_SECONDS, window=JOBS)} > 0)",
            "{{tenant}}",
        ),
    ),
    "While all of them have jobs that wait, these are their weights.",
    kind="areas",
)
TENANTS_STEPS = Panel(
    "Steps by tenant, a second",
    "short",
    (Query(Q.rate(names.STEPS_RUN, "tenant", window=JOBS), "{{tenant}}"),),
    "Denoising steps that were run.",
    kind="areas",
)
TENANTS_JOBS = Panel(
    "Jobs accepted by tenant, in half an hour",
    "short",
    (Query(Q.risen(names.JOBS_ACCEPTED, "tenant", window=JOBS), "{{tenant}}"),),
    "Who asks for how much.",
    kind="areas",
)
ROOM = Panel(
    "Room made for urgent jobs, in half an hour",
    "short",
    (
        Query(Q.increase(names.PREEMPTIONS, window=JOBS), "asked to make room"),
        Query(Q.risen(names.PARKS, window=JOBS), "parked, for whatever reason"),
    ),
    "Parked jobs lose no step. Many of them: keep room (scheduling.headroom_s), or start more samplers.",
)
FORECAST = Panel(
    "Real time over forecast",
    "short",
    (
        Query(Q.quantile(0.1, names.FORECAST_RATIO, "tier", window=JOBS), "{{tier}}, 10 %"),
        Query(Q.quantile(0.5, names.FORECAST_RATIO, "tier", window=JOBS), "{{tier}}, half"),
        Query(Q.quantile(0.9, names.FORECAST_RATIO, "tier", window=JOBS), "{{tier}}, 90 %"),
    ),
    "1: the finish that clients were told was right. 2: it took twice as long.",
)
ENDED = Panel(
    "Jobs ended by tenant, in half an hour",
    "short",
    (Query(Q.risen(names.JOBS_ENDED, "tenant", "state", window=JOBS), "{{tenant}}: {{state}}"),),
    "What became of them.",
)

QUEUE = Dashboard(
    "queue",
    "queue and fairness",
    "Who waits, for how long, and whether the tenants get their shares.",
    (
        Row("What waits", (BY_TIER, BY_TENANT, WORK)),
        Row("For how long", (OLDEST, OLDEST_OF_TENANT, WAITED)),
        Row("Fairness", (SHARES, TENANTS_STEPS, TENANTS_JOBS)),
        Row("Promises", (FORECAST, ROOM, ENDED)),
    ),
)
