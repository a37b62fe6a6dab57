"""What all jobs come to, ever: how many were accepted and how each ended, what they used, how long they took.

Jobs are deleted after a while, so sums over them would fall. Here is a small row for each tenant, tier and outcome, to
which a job is added in the transaction that accepts it, ends it, or sends it back; its deletion then changes nothing.
What is live is read from the jobs themselves: `read_totals` puts both together in one statement, so that they fit each
other at every moment, whoever is killed.

The rows are few and every transaction wants the same ones. So what is to be added is collected while a transaction
runs, and written at its end, in the order of the rows: two registries wait for each other there for a moment, and
never in a circle.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

from sqlalchemy import Connection, Insert, Select, Table, case, func, literal, select, union_all

from deployments.messages import JobKind, Stage
from deployments.metrics import names
from deployments.metrics.metric import Metric
from deployments.metrics.recorder import Distribution, no_observation
from serve_app.database.engine import insert_into
from serve_app.database.schema import LEASED, WAITING, job_times, job_totals, jobs
from serve_app.jobs import Job, JobState

ACCEPTED = "accepted"
RETRIED = "retried"
INPUT_UNUSABLE = "input_unusable"
"""The code under which a job is counted whose input had to be made again."""

_PENDING = "pending_totals"
_TIMES: dict[str, Metric] = {
    "wait": names.JOB_WAIT,
    "encode": names.JOB_ENCODE,
    "sample": names.JOB_SAMPLE,
    "decode": names.JOB_DECODE,
    "upload": names.JOB_UPLOAD,
    "end_to_end": names.JOB_END_TO_END,
}
_PARTS = {
    "encode": (f"{Stage.ENCODING}.encode",),
    "sample": (f"{Stage.SAMPLING}.denoise",),
    "decode": (f"{Stage.DECODING}.decode", f"{Stage.DECODING}.mp4"),
    "upload": tuple(f"{stage}.store" for stage in Stage),
}


@dataclass(frozen=True, slots=True)
class Amounts:
    """What some jobs come to."""

    jobs: int = 0
    device_s: float = 0.0
    steps_run: int = 0  # denoising steps
    steps_repeated: int = 0  # run, and not among the steps that a job has
    parks: int = 0

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.jobs + other.jobs,
            self.device_s + other.device_s,
            self.steps_run + other.steps_run,
            self.steps_repeated + other.steps_repeated,
            self.parks + other.parks,
        )


NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class TotalsKey:
    """Of a row of `job_totals`, or of live jobs."""

    tenant: str
    tier: str
    outcome: str  # ACCEPTED, RETRIED, or a state
    code: str = ""  # why, where there is an error


@dataclass(frozen=True, slots=True)
class Totals:
    """All jobs at one moment."""

    amounts: Mapping[TotalsKey, Amounts]
    waiting_since: Mapping[tuple[str, str], float]  # by tier and tenant; Unix seconds
    tenants: tuple[str, ...]  # whose first job was accepted first, first
    times: Mapping[tuple[str, str], Distribution]  # by name of the metric and tier

    def sum(self, wanted: Callable[[TotalsKey], bool]) -> Amounts:
        """Of all that are wanted."""
        return sum((amounts for key, amounts in self.amounts.items() if wanted(key)), NOTHING)


@contextmanager
def collecting_totals(connection: Connection) -> Iterator[None]:
    """Within a transaction: what is counted in the block is written at its end, and forgotten if the block raises."""
    info = connection.info  # taken before: a connection that was lost has none any more
    info[_PENDING] = _Pending()
    try:
        yield
        _write_pending(connection)
    finally:
        info.pop(_PENDING, None)


@contextmanager
def forgetting_totals_of_failed(connection: Connection) -> Iterator[None]:
    """Within `collecting_totals`: what was counted in the block is forgotten if it raises; for a savepoint."""
    info = connection.info
    pending: _Pending = info[_PENDING]
    before = pending.copy()
    try:
        yield
    except BaseException:
        info[_PENDING] = before
        raise


def count_accepted(connection: Connection, job: Job) -> None:
    """The job was just written for the first time."""
    _add(connection, TotalsKey(job.tenant, job.tier, ACCEPTED), Amounts(jobs=1), job.created_at)


def count_retry(connection: Connection, job: Job, code: str, *, now: float) -> None:
    """The job goes back to the queue because of what `code` names."""
    _add(connection, TotalsKey(job.tenant, job.tier, RETRIED, code), Amounts(jobs=1), now)


def count_end(connection: Connection, job: Job) -> None:
    """The job has just ended, with all that it used in it."""
    assert job.completed_at is not None
    code = "" if job.error is None else job.error.code
    steps_run = job.steps_run if job.kind is JobKind.VIDEO else 0
    repeated = max(0, steps_run - job.step)
    amounts = Amounts(1, job.device_s, steps_run, repeated, job.parks)
    times = [(name, job.tier, seconds) for name, seconds in times_of(job).items()]
    _add(connection, TotalsKey(job.tenant, job.tier, job.state, code), amounts, job.completed_at, times)


def times_of(job: Job) -> dict[str, float]:
    """What an ended job adds to the histograms, seconds by name of `_TIMES`."""
    times: dict[str, float] = {}
    if job.started_at is not None:
        times["wait"] = max(0.0, job.started_at - job.created_at)
    if job.state is JobState.COMPLETED and job.completed_at is not None:
        times["end_to_end"] = max(0.0, job.completed_at - job.created_at)
        parts_of = _PARTS if job.kind is JobKind.VIDEO else {"upload": _PARTS["upload"]}
        times |= {name: sum(job.seconds.get(part, 0.0) for part in parts) for name, parts in parts_of.items()}
    return times


def read_totals(connection: Connection) -> Totals:
    """All jobs, in one statement: the sums of those that ended, and what is live.

    It reads the few rows of the sums and, from the indexes of what waits and what is leased, the live jobs.
    """
    if _PENDING in connection.info:
        _write_pending(connection)
    amounts: defaultdict[TotalsKey, Amounts] = defaultdict(Amounts)
    waiting_since: dict[tuple[str, str], float] = {}
    first: dict[str, float] = {}
    for tenant, tier, outcome, code, since, *numbers in connection.execute(_ALL):
        count, device_s, steps_run, repeated, parks = numbers
        amounts[TotalsKey(tenant, tier, outcome, code)] += Amounts(
            int(count), float(device_s), int(steps_run), int(repeated), int(parks)
        )
        if outcome == JobState.QUEUED:
            waiting_since[tier, tenant] = since
        elif outcome == ACCEPTED:
            first[tenant] = min(since, first.get(tenant, since))
    tenants = tuple(sorted(first, key=lambda tenant: (first[tenant], tenant)))
    return Totals(dict(amounts), waiting_since, tenants, _read_times(connection))


def _live() -> list[Select[Any]]:
    # The steps of other jobs are no denoising steps.
    steps_run = case((jobs.c.kind == JobKind.VIDEO, jobs.c.steps_run), else_=0)
    repeated = case((steps_run > jobs.c.step, steps_run - jobs.c.step), else_=0)
    columns = (
        jobs.c.tenant,
        jobs.c.tier,
        jobs.c.state.label("outcome"),
        literal("").label("code"),
        func.min(jobs.c.available_at).label("since"),
        func.count().label("jobs"),
        func.sum(jobs.c.device_s),
        func.sum(steps_run),
        func.sum(repeated),
        func.sum(jobs.c.parks),
    )
    return [
        select(*columns).where(live).group_by(jobs.c.tenant, jobs.c.tier, jobs.c.state) for live in (WAITING, LEASED)
    ]


_ENDED: Select[Any] = select(*job_totals.c)
_ALL = union_all(_ENDED, *_live())


def _read_times(connection: Connection) -> dict[tuple[str, str], Distribution]:
    """A bound that is none of today's counts to the next one above."""
    times: dict[tuple[str, str], Distribution] = {}
    for name, tier, bound, count, total in connection.execute(select(*job_times.c)):
        metric = _TIMES.get(name)
        if metric is None:
            continue
        counts = list(no_observation(metric).counts)
        counts[bisect_left(metric.buckets, float(bound))] = int(count)
        before = times.get((metric.name, tier), no_observation(metric))
        times[metric.name, tier] = before + Distribution(tuple(counts), float(total))
    return times


class _Pending:
    """What a transaction has still to write."""

    def __init__(self) -> None:
        self.amounts: dict[TotalsKey, Amounts] = {}
        self.since: dict[TotalsKey, float] = {}
        self.times: dict[tuple[str, str, str], tuple[int, float]] = {}  # by name, tier and bound: count and sum

    def copy(self) -> "_Pending":
        copy = _Pending()
        copy.amounts, copy.since, copy.times = dict(self.amounts), dict(self.since), dict(self.times)
        return copy

    def add(self, key: TotalsKey, amounts: Amounts, at: float, times: Sequence[tuple[str, str, float]]) -> None:
        self.amounts[key] = self.amounts.get(key, NOTHING) + amounts
        self.since[key] = min(at, self.since.get(key, at))
        for name, tier, seconds in times:
            bounds = (*_TIMES[name].buckets, float("inf"))
            row = name, tier, repr(float(bounds[bisect_left(_TIMES[name].buckets, seconds)]))
            count, total = self.times.get(row, (0, 0.0))
            self.times[row] = count + 1, total + seconds


def _add(
    connection: Connection,
    key: TotalsKey,
    amounts: Amounts,
    at: float,
    times: Sequence[tuple[str, str, float]] = (),
) -> None:
    """Count it at the end of the transaction, or at once where nobody collects."""
    pending: _Pending | None = connection.info.get(_PENDING)
    if pending is not None:
        pending.add(key, amounts, at, times)
        return
    with collecting_totals(connection):
        _add(connection, key, amounts, at, times)


def _write_pending(connection: Connection) -> None:
    pending: _Pending = connection.info[_PENDING]
    connection.info[_PENDING] = _Pending()
    rows = [
        dict(zip(job_totals.c.keys(), (*astuple(key), pending.since[key], *astuple(amounts)), strict=True))
        for key, amounts in sorted(pending.amounts.items(), key=lambda item: astuple(item[0]))
    ]
    _increase(connection, job_totals, rows, kept=("tenant", "tier", "outcome", "code", "since"))
    times = [
        {"name": name, "tier": tier, "bound": bound, "count": count, "total": total}
        for (name, tier, bound), (count, total) in sorted(pending.times.items())
    ]
    _increase(connection, job_times, times, kept=("name", "tier", "bound"))


def _increase(connection: Connection, table: Table, rows: list[dict[str, object]], kept: Sequence[str]) -> None:
    """Add the numbers of each row to those of the row with its key."""
    if not rows:
        return
    statement = _INCREASES.get((connection.dialect.name, table.name))
    if statement is None:  # to build it takes longer than to run it
        query = insert_into(connection, table)
        added = {column.name: column + query.excluded[column.name] for column in table.c if column.name not in kept}
        statement = query.on_conflict_do_update(index_elements=list(table.primary_key), set_=added)
        _INCREASES[connection.dialect.name, table.name] = statement
    connection.execute(statement, rows)


_INCREASES: dict[tuple[str, str], Insert] = {}
"""Statements by dialect and table."""
