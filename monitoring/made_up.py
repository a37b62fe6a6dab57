"""Made-up series for promtool: a server that is well, and for each alert what makes it fire, and what nearly does.

Times are minutes, and so are the steps between samples: `0+2x60` is 0, 2, 4 and so on for an hour.
"""

from dataclasses import dataclass, field

from deployments.metrics import names
from deployments.metrics.metric import Metric
from monitoring.promql import JOB

SERVER = "mochi-serve"
LENGTH = 105  # minutes
AT = 100
"""The minute that is looked at. Windows of hours see what there is: each minute is evaluated, and days take long."""
PODS = ("10.0.0.1:8000", "10.0.0.2:8000")
"""Two ingress replicas are read, and each answers for the whole: nothing may count double."""

Series = dict[str, str]


def series(metric: Metric, values: str, suffix: str = "", **labels: str) -> Series:
    """The same series as read from each pod."""
    known = {*metric.label_names, "le"} if metric.kind == "histogram" else {*metric.label_names}
    assert {*labels} <= known and len(labels) >= len(metric.label_names), (metric.name, labels)
    return {
        f"{metric.name}{suffix}{{"
        + ", ".join(f'{name}="{value}"' for name, value in ({JOB: SERVER, "instance": pod} | labels).items())
        + "}": values
        for pod in PODS
    }


def steady(value: float) -> str:
    """All the time."""
    return f"{value}+0x{LENGTH}"


def rising(a_minute: float) -> str:
    """From 0."""
    return f"0+{a_minute}x{LENGTH}"


def since(minutes_ago: int, before: float, after: float) -> str:
    """A change so long before the moment that is looked at."""
    return f"{before}+0x{AT - minutes_ago - 1} {after}+0x{LENGTH - AT + minutes_ago}"


def _forecasts(right: float, tier: str = "standard") -> Series:
    """30 forecasts an hour, this part of them within half."""
    of, all_of_them = names.FORECAST_RATIO, 0.5
    return (
        series(of, rising(0), "_bucket", tier=tier, le="0.5")
        | series(of, rising(all_of_them * right), "_bucket", tier=tier, le="1.5")
        | series(of, rising(all_of_them), "_bucket", tier=tier, le="+Inf")
        | series(of, rising(all_of_them), "_count", tier=tier)
    )


def _ended(state: str, values: str) -> Series:
    return series(names.JOBS_ENDED, values, state=state, tier="standard", tenant="a")


def _starts(values: str) -> Series:
    return series(names.START_SECONDS, values, "_count", stage="sampling", phase="warm_up")


def _waits(tier: str, values: str) -> Series:
    return series(names.QUEUE_OLDEST_WAIT, values, tier=tier, tenant="a")


WELL: Series = (
    series(names.PROCESSES, steady(7))
    | series(names.JOBS_LIVE, steady(4), state="queued")
    | series(names.JOBS_LIVE, steady(2), state="sampling")
    | series(names.JOBS_UNACCOUNTED, steady(0))
    | series(names.STEPS_RUN, rising(80), tenant="a")
    | _ended("completed", rising(1))
    | _ended("failed", rising(0.05))
    | _waits("standard", steady(45))
    | _waits("interactive", steady(12))
    | series(names.TARGET_WAIT, steady(600), tier="standard")
    | series(names.TARGET_WAIT, steady(60), tier="interactive")
    | series(names.RETRIES, steady(0), code="internal_error")
    | series(names.RETRIES, since(40, 2, 3), code="replica_died")
    | _starts(since(50, 1, 4))
    | series(names.LEASES_LAPSED, since(5, 1, 2))
    | series(names.STORE_REQUESTS, rising(60), operation="put", outcome="done")
    | series(names.STORE_REQUESTS, rising(1), operation="put", outcome="failed")
    | series(names.DATABASE_OPERATIONS, rising(300), outcome="done")
    | series(names.DATABASE_OPERATIONS, since(60, 0, 4), outcome="failed")
    | series(names.DISK_USED, steady(0.6), disk="data")
    | series(names.WEBHOOK_OVERDUE, steady(3))
    | series(names.WEBHOOKS, since(80, 0, 1), outcome="given_up")
    | _forecasts(0.8)
    | series(names.GPU_XIDS, steady(0), gpu="GPU-1")
    | series(names.GPU_ECC, steady(0), gpu="GPU-1")
    | series(names.FEED_LAG, steady(0.4))
)


@dataclass(frozen=True, slots=True)
class Case:
    """A server that is well but for these series.

    Args:
        alert: the name of the rule that is looked at.
        unlike: what differs from `WELL`; a series without values is not there.
        fires: whether it does.
        labels: of the alert that fires, beside the rule's own.
    """

    alert: str
    about: str
    unlike: Series
    fires: bool = True
    labels: dict[str, str] = field(default_factory=lambda: {JOB: SERVER})

    @property
    def series(self) -> Series:
        return {name: values for name, values in (WELL | self.unlike).items() if values}


def _labelled(**labels: str) -> dict[str, str]:
    return {JOB: SERVER} | labels


_STUCK = (
    series(names.STEPS_RUN, steady(500), tenant="a") | _ended("completed", steady(40)) | _ended("failed", steady(2))
)

CASES = (
    Case("MochiServeAway", "no page at all", dict.fromkeys(WELL, ""), labels={}),
    Case("MochiServeAway", "one of two pods is away", {list(series(names.PROCESSES, ""))[0]: ""}, fires=False),
    Case("MochiServeJobsUnaccounted", "one is missing", series(names.JOBS_UNACCOUNTED, since(5, 0, 1))),
    Case("MochiServeJobsUnaccounted", "one is counted twice", series(names.JOBS_UNACCOUNTED, since(5, 0, -1))),
    Case("MochiServeJobsNotMoving", "jobs and no step", _STUCK),
    Case(
        "MochiServeJobsNotMoving",
        "nothing to do",
        _STUCK
        | series(names.JOBS_LIVE, steady(0), state="queued")
        | series(names.JOBS_LIVE, steady(0), state="sampling"),
        fires=False,
    ),
    Case(
        "MochiServeJobsNotMoving",
        "the first job, while a replica starts",
        _STUCK
        | series(names.JOBS_LIVE, since(12, 0, 1), state="queued")
        | series(names.JOBS_LIVE, steady(0), state="sampling"),
        fires=False,
    ),
    Case(
        "MochiServeTierOverTarget",
        "urgent jobs wait as long as others may",
        _waits("interactive", steady(300)),
        labels=_labelled(tier="interactive"),
    ),
    Case("MochiServeTierOverTarget", "a short while", _waits("interactive", since(5, 10, 300)), fires=False),
    Case("MochiServeJobsFailing", "half of them", _ended("failed", rising(1))),
    Case(
        "MochiServeJobsFailing",
        "one of two",
        _ended("failed", since(30, 0, 1)) | _ended("completed", since(20, 7, 8)),
        False,
    ),
    Case(
        "MochiServeReplicasDying",
        "three deaths, of a code that was not there before",
        series(names.RETRIES, since(10, 0, 3).replace("0+0x", "_x"), code="device_broken") | _starts(since(9, 4, 8)),
    ),
    Case(
        "MochiServeReplicasDying",
        "one replica with many jobs",
        series(names.RETRIES, since(10, 3, 11), code="replica_died") | _starts(since(9, 4, 5)),
        fires=False,
    ),
    Case(
        "MochiServeReplicasDying",
        "two deaths",
        series(names.RETRIES, since(10, 3, 5), code="replica_died") | _starts(since(9, 4, 8)),
        False,
    ),
    Case(
        "MochiServeReplicasDying",
        "old deaths that Prometheus reads for the first time",
        {name: f"_x{AT - 6} {values}" for name, values in WELL.items()}
        | series(names.RETRIES, f"_x{AT - 6} 9+0x60", code="replica_died")
        | _starts(f"_x{AT - 6} 1 9+0x60"),
        fires=False,
    ),
    Case("MochiServeReplicasSilent", "eight of them", series(names.LEASES_LAPSED, since(5, 1, 9))),
    Case(
        "MochiServeStoreFailing",
        "every third",
        series(names.STORE_REQUESTS, rising(30), operation="put", outcome="failed"),
    ),
    Case(
        "MochiServeDatabaseFailing",
        "a few, again and again",
        series(names.DATABASE_OPERATIONS, rising(2), outcome="failed"),
    ),
    Case(
        "MochiServeDiskFilling",
        "full",
        series(names.DISK_USED, steady(0.95), disk="data"),
        labels=_labelled(disk="data"),
    ),
    Case(
        "MochiServeDiskFilling",
        "full tomorrow",
        series(names.DISK_USED, f"0.72+0.0005x{LENGTH}", disk="models"),
        labels=_labelled(disk="models"),
    ),
    Case(
        "MochiServeDiskFilling",
        "fills, and has room",
        series(names.DISK_USED, f"0.1+0.0005x{LENGTH}", disk="data"),
        False,
    ),
    Case("MochiServeWebhooksBehind", "for ten minutes", series(names.WEBHOOK_OVERDUE, f"0x{AT - 40} 0+60x100")),
    Case("MochiServeWebhooksGivenUp", "one", series(names.WEBHOOKS, since(20, 0, 1), outcome="given_up")),
    Case(
        "MochiServeForecastWrong",
        "most",
        _forecasts(0.3, "interactive"),
        labels=_labelled(tier="interactive"),
    ),
    Case(
        "MochiServeGpuSick",
        "an Xid",
        series(names.GPU_XIDS, since(9, 0, 1), gpu="GPU-2"),
        labels=_labelled(gpu="GPU-2"),
    ),
    Case(
        "MochiServeGpuSick", "memory", series(names.GPU_ECC, since(9, 0, 2), gpu="GPU-2"), labels=_labelled(gpu="GPU-2")
    ),
    Case(
        "MochiServeDeviceFailing",
        "for minutes",
        series(names.DEVICES, since(9, 0, 1), application="proteins", breaker="open"),
        labels=_labelled(application="proteins"),
    ),
    Case(
        "MochiServeDeviceFailing",
        "once, and works again",
        series(names.DEVICES, since(2, 0, 1), application="proteins", breaker="open"),
        False,
    ),
    Case("MochiServeIngressBehind", "for minutes", series(names.FEED_LAG, f"0x{AT - 20} 0+60x60")),
    Case("MochiServeIngressBehind", "a registry that starts anew", series(names.FEED_LAG, since(1, 0, 45)), False),
)
