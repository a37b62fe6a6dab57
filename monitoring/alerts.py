"""The alert rules. Each has a paragraph of the same name in docs/operations.md, "Alerts"."""

from dataclasses import dataclass
from typing import Literal

from deployments.metrics import names
from monitoring.promql import JOB, PromQL

Severity = Literal["critical", "warning"]

Q = PromQL(keep=(JOB,))
GROUP = "mochi-serve"
RUNBOOKS = "docs/operations.md"

DEATHS = "~replica_died|replica_unhealthy|device_broken|out_of_memory"
"""Codes of what a replica, and not a job, has done. No code of these is there before it happened."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule.

    Args:
        name: as Alertmanager shows it.
        expression: fires where it has a series.
        after: for so long, in Prometheus' words.
        severity: critical: wake somebody; warning: look at it today.
        summary: one line; `{{ $labels.x }}` is a label's value.
    """

    name: str
    expression: str
    after: str
    severity: Severity
    summary: str

    @property
    def runbook(self) -> str:
        """Where its paragraph is."""
        return f"{RUNBOOKS}#{self.name.lower()}"


def _failed_share(window: str) -> str:
    failed = Q.increase(names.STORE_REQUESTS, window=window, outcome="failed")
    return f"{failed} / ({Q.increase(names.STORE_REQUESTS, window=window)} > 0)"


def _forecasts_off(window: str) -> str:
    """The part of forecasts that were off by half or more, where there were enough to tell."""
    right = (
        f"({Q.below(1.5, names.FORECAST_RATIO, 'tier', window=window)} - "
        f"{Q.below(0.5, names.FORECAST_RATIO, 'tier', window=window)})"
    )
    return f"1 - {right} / ({Q.increase(names.FORECAST_RATIO, 'tier', window=window, suffix='_count')} > 20)"


_TIERS_WAIT = f"{Q.now(names.QUEUE_OLDEST_WAIT, 'tier')} > {Q.now(names.TARGET_WAIT, 'tier')}"
_ENDED = Q.risen(names.JOBS_ENDED, window="1h")
_FAILED = Q.risen(names.JOBS_ENDED, window="1h", state="failed")
_DISK = Q.now(names.DISK_USED, "disk")

ALERTS = (
    Alert(
        "MochiServeAway",
        Q.absent(names.PROCESSES),
        "2m",
        "critical",
        "Prometheus gets no metrics of mochi-serve: the server, its registry or its database is away",
    ),
    Alert(
        "MochiServeJobsUnaccounted",
        f"{Q.now(names.JOBS_UNACCOUNTED)} != 0",
        "1m",
        "critical",
        "Accepted jobs are neither live nor ended, or counted twice",
    ),
    Alert(
        "MochiServeJobsNotMoving",
        f"({Q.now(names.JOBS_LIVE)} > 0) and ({Q.increase(names.STEPS_RUN, window='5m')} == 0)"
        f" and ({Q.increase(names.JOBS_ENDED, window='5m')} == 0)",
        "15m",
        "critical",
        "There are jobs, and for 15 minutes no step was run and none has ended",
    ),
    Alert(
        "MochiServeTierOverTarget",
        _TIERS_WAIT,
        "10m",
        "warning",
        "A job of the tier {{ $labels.tier }} has waited longer than scheduling.target_wait_s",
    ),
    Alert(
        "MochiServeJobsFailing",
        f"({_FAILED} / ({_ENDED} > 0) > 0.2) and ({_FAILED} > 3)",
        "5m",
        "warning",
        "More than a fifth of the jobs that ended in the last hour have failed",
    ),
    Alert(
        "MochiServeReplicasDying",
        f"{Q.risen(names.RETRIES, window='15m', code=DEATHS)} >= 3"
        f" and {Q.increase(names.START_SECONDS, window='15m', suffix='_count', phase='warm_up')} > 2.5",
        "0m",
        "critical",
        "Jobs went back because replicas or devices died, and three replicas or more have started in 15 minutes",
    ),
    Alert(
        "MochiServeReplicasSilent",
        f"{Q.increase(names.LEASES_LAPSED, window='15m')} > 3",
        "0m",
        "warning",
        "Leases lapse: replicas are there and are not heard",
    ),
    Alert(
        "MochiServeStoreFailing",
        f"{_failed_share('5m')} > 0.1",
        "3m",
        "critical",
        "More than a tenth of the requests to the object store fail",
    ),
    Alert(
        "MochiServeDatabaseFailing",
        f"{Q.increase(names.DATABASE_OPERATIONS, window='5m', outcome='failed')} > 0",
        "3m",
        "critical",
        "Operations on the database fail",
    ),
    Alert(
        "MochiServeDiskFilling",
        f"{_DISK} > 0.9 or ({_DISK} > 0.7 and {_DISK} + 86400 * {Q.slope(names.DISK_USED, 'disk', window='6h')} > 1)",
        "15m",
        "warning",
        "The disk of {{ $labels.disk }} is nearly full, or will be within a day",
    ),
    Alert(
        "MochiServeWebhooksBehind",
        f"{Q.now(names.WEBHOOK_OVERDUE)} > 300",
        "10m",
        "warning",
        "Webhooks that are due have waited for more than five minutes",
    ),
    Alert(
        "MochiServeWebhooksGivenUp",
        f"{Q.increase(names.WEBHOOKS, window='1h', outcome='given_up')} > 0",
        "0m",
        "warning",
        "A receiver never took a webhook, and it is not sent again",
    ),
    Alert(
        "MochiServeForecastWrong",
        f"{_forecasts_off('6h')} > 0.5",
        "30m",
        "warning",
        "Most forecasts for the tier {{ $labels.tier }} are off by half or more",
    ),
    Alert(
        "MochiServeGpuSick",
        f"{Q.now(names.GPU_XIDS, 'gpu')} > 0 or {Q.now(names.GPU_ECC, 'gpu')} > 0",
        "2m",
        "critical",
        "The GPU {{ $labels.gpu }} has had critical errors",
    ),
    Alert(
        "MochiServeDeviceFailing",
        f"{Q.now(names.DEVICES, 'application', breaker='~open|half_open')} > 0",
        "5m",
        "warning",
        "A device of {{ $labels.application }} fails, and calls stay away from it",
    ),
    Alert(
        "MochiServeIngressBehind",
        f"{Q.now(names.FEED_LAG)} > 30",
        "2m",
        "warning",
        "An HTTP replica hears nothing from the registry, and what clients see of their jobs is old",
    ),
)
