"""From the sums over all jobs to the metrics of jobs. Pure."""

from collections.abc import Mapping

from deployments.metrics import names
from deployments.metrics.metric import OTHER, Metric
from deployments.metrics.recorder import LabelBounds, Series, Value
from serve_app.database.jobs.totals import ACCEPTED, RETRIED, Totals
from serve_app.jobs import FINAL, RUNNING, JobState
from serve_app.metrics.processes import add_values

_FINAL = frozenset(state.value for state in FINAL)
_LIVE = frozenset({JobState.QUEUED.value, *(state.value for state in RUNNING)})


def job_values(
    totals: Totals, waiting_gpu_s: Mapping[tuple[str, str], float], *, now: float, most_tenants: int
) -> dict[Series, Value]:
    """The metrics whose source is `jobs`, and what the waiting jobs still need.

    Args:
        totals: of all jobs.
        waiting_gpu_s: estimated seconds of devices that waiting jobs need, by tier and tenant.
        now: Unix seconds.
        most_tenants: so many are told apart, those that came first; so no series of one ever goes into another.
    """
    shown = set(totals.tenants[:most_tenants])
    values: dict[Series, Value] = {}

    def tenant_of(name: str) -> str:
        return name if name in shown else OTHER

    def add(metric: Metric, value: float, *labels: str) -> None:
        add_values(values, {(metric.name, labels): value})

    codes = LabelBounds()
    accepted = ended = live = 0
    for key, amounts in sorted(totals.amounts.items(), key=lambda item: item[0].code):
        tenant = tenant_of(key.tenant)
        if key.outcome == ACCEPTED:
            accepted += amounts.jobs
            add(names.JOBS_ACCEPTED, amounts.jobs, key.tier, tenant)
            # Known tenants have a queue, if an empty one, and have used something, if nothing.
            for empty in (names.QUEUE_JOBS, names.QUEUE_OLDEST_WAIT, names.QUEUE_GPU_SECONDS):
                add(empty, 0, key.tier, tenant)
            for state in names.END_STATES:
                add(names.JOBS_ENDED, 0, state, key.tier, tenant)
        elif key.outcome == RETRIED:
            add(names.RETRIES, amounts.jobs, *codes.bounded(names.RETRIES, (key.code,)))
        elif key.outcome in _FINAL:
            ended += amounts.jobs
            add(names.JOBS_ENDED, amounts.jobs, key.outcome, key.tier, tenant)
            if key.outcome == JobState.FAILED:
                add(names.JOBS_FAILED, amounts.jobs, *codes.bounded(names.JOBS_FAILED, (key.code,)))
        elif key.outcome in _LIVE:
            live += amounts.jobs
            add(names.JOBS_LIVE, amounts.jobs, key.outcome)
            if key.outcome == JobState.QUEUED:
                add(names.QUEUE_JOBS, amounts.jobs, key.tier, tenant)
        add(names.GPU_SECONDS, amounts.device_s, tenant)
        add(names.STEPS_RUN, amounts.steps_run, tenant)
        add(names.STEPS_REPEATED, amounts.steps_repeated)
        add(names.PARKS, amounts.parks)
    for (tier, tenant), since in totals.waiting_since.items():
        add(names.QUEUE_OLDEST_WAIT, max(0.0, now - since), tier, tenant_of(tenant))
    for (tier, tenant), seconds in waiting_gpu_s.items():
        add(names.QUEUE_GPU_SECONDS, seconds, tier, tenant_of(tenant))
    add(names.JOBS_UNACCOUNTED, accepted - ended - live)
    return values | {(name, (tier,)): times for (name, tier), times in totals.times.items()}
