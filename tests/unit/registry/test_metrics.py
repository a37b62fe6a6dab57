"""The registry hears what processes counted, keeps it, and loses none of it when it is killed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER, Distribution, Recorder, Series, Snapshot, Value
from serve_app.config import MetricsSettings, SchedulingSettings
from serve_app.database.connection import Database
from serve_app.jobs import TIERS, JobState, Place, Submission, Tier
from serve_app.registry.metrics import RegistryMetrics
from serve_app.registry.state import RegistryState
from tests.support.registry.world import SETTINGS, SPEC, World

COUNTED = (names.CHECKPOINTS.name, ())
ROWS = (names.STEP_ROWS.name, ())
Make = Callable[..., RegistryMetrics]


@pytest.fixture
def make(database_url: str) -> Iterator[Make]:
    """A registry's metrics; each call is a registry that starts, the one before was killed."""
    opened: list[Database] = []

    def start(owner: str = "cluster-1", alone: bool = True, recorder: Recorder | None = None) -> RegistryMetrics:
        opened.append(Database(database_url))
        state = RegistryState(opened[-1], SETTINGS, SchedulingSettings(), owner, alone=alone)
        return RegistryMetrics(state, MetricsSettings(), recorder or Recorder())

    yield start
    for database in opened:
        database.close()


def told(process: str, number: int, checkpoints: int) -> Snapshot:
    rows = Distribution((checkpoints,) + (0,) * len(names.STEP_ROWS.buckets), float(checkpoints))
    values: dict[Series, Value] = {COUNTED: checkpoints, ROWS: rows}
    return Snapshot(process, "sampling", number, values)


async def test_what_was_kept_is_there_after_a_kill_and_counts_once(make: Make) -> None:
    first = make()
    await first.keep()
    first.hear(told("a", 1, 5))
    first.hear(told("b", 1, 7))
    await first.keep()
    second = make()
    await second.keep()
    assert (await second.values())[COUNTED] == 12
    second.hear(told("a", 2, 6))  # it lives on, and sends all that it has counted
    second.hear(told("a", 1, 5))  # late
    values = await second.values()
    assert values[COUNTED] == 13
    rows = values[ROWS]
    assert isinstance(rows, Distribution) and (rows.counts[0], rows.total) == (13, 13.0)


async def test_what_comes_before_it_has_read_what_was_kept_is_not_lost(make: Make) -> None:
    first = make()
    first.hear(told("a", 1, 5))
    await first.keep()
    second = make()
    second.hear(told("a", 2, 6))
    second.hear(told("c", 1, 1))
    await second.keep()
    assert (await second.values())[COUNTED] == 7


async def test_its_own_counts_stay_too(make: Make) -> None:
    recorder = Recorder()
    recorder.count(names.LEASES_LAPSED, by=3)
    await make(recorder=recorder).keep()
    second = make()
    await second.keep()
    assert (await second.values())[names.LEASES_LAPSED.name, ()] == 3


async def test_on_a_database_of_one_cluster_a_new_start_goes_on_with_the_sums(make: Make) -> None:
    first = make("session-1")
    first.hear(told("a", 1, 5))
    await first.keep()
    for session in ("session-2", "session-3"):
        later = make(session)
        await later.keep()
        assert (await later.values())[COUNTED] == 5


async def test_what_another_cluster_counts_is_its_own(make: Make) -> None:
    first = make("cluster-1", alone=False)
    first.hear(told("a", 1, 5))
    await first.keep()
    other = make("cluster-2", alone=False)
    await other.keep()
    assert COUNTED not in await other.values()


async def test_a_forecast_is_compared_with_the_truth(make: Make) -> None:
    recorder = Recorder()
    metrics = make(recorder=recorder)
    job = replace(Submission("a", "m", SPEC, tier=Tier.BATCH).accepted(100.0), place=Place(0, 110.0, 120.0))
    metrics.note_forecast(job)
    for _ in range(2):  # told twice, it ended once
        metrics.note_end(replace(job, state=JobState.COMPLETED, completed_at=130.0))
    metrics.note_end(replace(job, id="unknown", state=JobState.COMPLETED, completed_at=130.0))
    ratios = recorder.snapshot("x").values[names.FORECAST_RATIO.name, ("batch",)]
    assert isinstance(ratios, Distribution)
    assert (sum(ratios.counts), ratios.total) == (1, 1.5)


@pytest.fixture
async def served(world: World) -> AsyncIterator[World]:
    await world.replicas()
    yield world


async def test_a_running_registry_tells_of_its_queue_and_its_replicas(served: World) -> None:
    before = RECORDER.snapshot("test").values.get(COUNTED, 0)  # by what ran in this process before
    await served.registry.push_metrics(told("a", 1, 5))
    for number in range(3):
        await served.submit(f"job-{number}", tenant="acme", tier=Tier.BATCH)
    await served.workers.next()  # one encodes, two wait
    async with asyncio.timeout(60):  # what was read of SQL is good for a moment
        while (values := await served.registry.metrics()).get((names.QUEUE_JOBS.name, ("batch", "acme"))) != 2:
            await asyncio.sleep(0.05)
    counted = values[COUNTED]
    assert isinstance(counted, int | float) and isinstance(before, int | float) and counted - before == 5
    assert values[names.JOBS_LIVE.name, ("queued",)] == 2
    assert values[names.JOBS_LIVE.name, ("encoding",)] == 1
    queued = values[names.QUEUE_GPU_SECONDS.name, ("batch", "acme")]
    assert isinstance(queued, float) and queued > 0
    assert values[names.SLOTS.name, ("sampling",)] == values[names.REPLICAS.name, ("sampling",)] == 1
    assert values[names.PROCESSES.name, ()] == 2  # the one that was told of, and the registry


async def test_how_things_stand_is_told(database_url: str, make: Make) -> None:
    values = await make().values()
    for tier in TIERS:
        assert values[names.TARGET_WAIT.name, (tier,)] == SchedulingSettings().target_wait_s.of(tier)
    assert (values[names.WEBHOOKS_WAITING.name, ()], values[names.WEBHOOK_OVERDUE.name, ()]) == (0, 0)
    used = values.get((names.DISK_USED.name, ("data",)))
    assert (used is None) == (not database_url.startswith("sqlite"))
    assert used is None or (isinstance(used, float) and 0 < used < 1)
