"""The registry in storms: whatever happens, each job that was accepted ends once, and nothing is left over."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from deployments.messages import JobKind
from deployments.metrics import names
from deployments.metrics.metric import Metric
from deployments.metrics.recorder import Value
from serve_app.database.jobs.totals import Totals, read_totals
from serve_app.jobs import FINAL, Job, JobState, Move, check_move
from serve_app.metrics.job_values import job_values
from serve_app.registry.actor import JobRegistry
from serve_app.scheduling.fair_queue import FairQueueSnapshot
from serve_app.scheduling.retries import MAX_DEATHS
from tests.support.registry.storm import DOOMED, STEPS, Storm, Weather, everything, is_doomed

CALM = Weather(jobs=40, doomed=0.1, repeated=0.1)
BAD = Weather(
    doomed=0.1,
    transient=0.01,
    out_of_memory=0.002,
    unheard=0.02,
    repeated=0.05,
    refused=0.05,
    uncommitted=0.01,
    untold_commits=0.02,
    faults=("kill", "outage", "jump", "death", "death", "silence", "leave"),
)
STEADY = replace(BAD, faults=("outage", "jump", "death", "silence", "leave"))  # nothing is mended by a restart
TWO = replace(BAD, clusters=2, faults=(*BAD.faults, "absence"))
PATIENCE_S = 300  # after this one is stuck; a storm takes some seconds
EXPECTED_ENDS = {"replica_died", "out_of_memory"}


async def brave(url: str, weather: Weather, seed: int) -> None:
    storm = Storm(url, weather, seed)
    try:
        jobs = await storm.blow(PATIENCE_S)
        histories, waiting, leased = await storm.sql(everything)
        assert (waiting, leased, storm.surprises) == ([], [], [])
        assert histories.keys() == jobs.keys()
        for job in jobs.values():
            check_history(job, histories[job.id])
            check_end(job, storm)
        check_metrics(jobs, await storm.sql(read_totals))
        check_overlaps(histories, storm)
        if not weather.faults:
            check_calm(jobs, storm)
        for cluster in storm.clusters:
            check_nothing_is_left(cluster.registry)
    except BaseException as error:
        error.add_note(f"in the storm with the seed {seed}, {weather}")
        error.add_note("\n".join(storm.left()))
        raise
    finally:
        await storm.close()


def check_history(job: Job, moves: list[Move]) -> None:
    """Legal moves, one end, and that is the last."""
    for before, after in pairwise(moves):
        check_move(before.state, after.state)
    assert [move.state for move in moves if move.state in FINAL] == [moves[-1].state] == [job.state], moves


def check_end(job: Job, storm: Storm) -> None:
    """Only what was asked for is cancelled, and only what was made to fail fails; who is done has done its work."""
    truth, steps = storm.truth, storm.truth.steps[job.id]
    match job.state:
        case JobState.CANCELLED:
            assert job.id in truth.cancelled
        case JobState.FAILED:
            assert job.error is not None
            deadly = job.error.code in EXPECTED_ENDS and truth.deaths[job.id] >= MAX_DEATHS[job.error.code]
            assert deadly or (job.error.code == DOOMED and is_doomed(job.spec)), job
        case _:
            assert not is_doomed(job.spec)
            assert steps >= STEPS and job.steps_run >= STEPS, job


def check_metrics(jobs: dict[str, Job], totals: Totals) -> None:
    """The sums are those of the jobs, whatever was killed and however often it was reported."""
    found = job_values(totals, {}, now=0.0, most_tenants=50)

    def on_page(metric: Metric) -> dict[tuple[str, ...], Value]:
        return {labels: value for (name, labels), value in found.items() if name == metric.name and value}

    assert on_page(names.JOBS_UNACCOUNTED) == on_page(names.JOBS_LIVE) == {}
    assert on_page(names.JOBS_ACCEPTED) == Counter((job.tier, job.tenant) for job in jobs.values())
    assert on_page(names.JOBS_ENDED) == Counter((job.state, job.tier, job.tenant) for job in jobs.values())
    assert sum_of(on_page(names.STEPS_RUN)) == sum(job.steps_run for job in jobs.values() if job.kind is JobKind.VIDEO)
    assert sum_of(on_page(names.PARKS)) == sum(job.parks for job in jobs.values())
    assert sum_of(on_page(names.GPU_SECONDS)) == pytest.approx(sum(job.device_s for job in jobs.values()))
    waits = [value for (name, _), value in totals.times.items() if name == names.JOB_WAIT.name]
    assert sum(sum(wait.counts) for wait in waits) == sum(job.started_at is not None for job in jobs.values())


def sum_of(series: dict[tuple[str, ...], Value]) -> float:
    return sum(value for value in series.values() if isinstance(value, int | float))


def check_overlaps(histories: dict[str, list[Move]], storm: Storm) -> None:
    """Two workers may be at one job only where a lease lapsed without a word."""
    for job_id in storm.truth.together:
        assert any("no report" in move.note for move in histories[job_id]), histories[job_id]


def check_calm(jobs: dict[str, Job], storm: Storm) -> None:
    """Where nothing was lost every step is run once and counted once, and no task is sent where there is no room."""
    assert storm.truth.waited == 0 and not storm.truth.together and not storm.truth.disturbed
    done = [job for job in jobs.values() if job.state is JobState.COMPLETED]
    assert {(storm.truth.steps[job.id], job.steps_run, job.attempt) for job in done} == {(STEPS, STEPS, 1)}


def check_nothing_is_left(registry: JobRegistry) -> None:
    """The mirror is as empty as SQL, all charges are settled, all counters are back at nothing."""
    snapshot = registry.snapshot()
    waiting = snapshot.state.waiting
    assert (snapshot.state.leases, snapshot.calls, snapshot.unconfirmed_claims) == ({}, {}, {})
    assert (waiting.job_ids, waiting.reserved, waiting.in_claim) == (frozenset(), {}, frozenset())
    assert snapshot.reserved_s == {}
    for queue in waiting.queues.values():
        assert queue == FairQueueSnapshot(job_ids=frozenset(), jobs_of_tenant={}, backlog=0, unsettled=0)


@pytest.mark.parametrize("seed", [1])
async def test_in_calm_weather_each_step_is_run_and_counted_once(tmp_path: Path, seed: int) -> None:
    await brave(f"sqlite:///{tmp_path / 'jobs.db'}", CALM, seed)


@pytest.mark.parametrize(
    ("database_url", "weather"),
    [("sqlite", BAD), ("sqlite", STEADY), ("postgres", STEADY)],
    ids=["sqlite-restarts", "sqlite-steady", "postgres-steady"],
    indirect=["database_url"],
)
@pytest.mark.parametrize("seed", [1])
async def test_a_storm_over_one_registry(database_url: str, weather: Weather, seed: int) -> None:
    await brave(database_url, weather, seed)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("seed", [1])
async def test_a_storm_over_two_registries(database_url: str, seed: int) -> None:
    await brave(database_url, TWO, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("weather", [BAD, STEADY, TWO], ids=["restarts", "steady", "two"])
async def test_many_storms(database_url: str, weather: Weather, seed: int) -> None:
    if weather.clusters > 1 and database_url.startswith("sqlite"):
        pytest.skip("one registry only on SQLite")
    await brave(database_url, weather, seed)
