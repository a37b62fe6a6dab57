"""The sweepers over SQL, with a bucket in memory.

Over any jobs and any objects in the bucket: what a sweep deletes, and that it touches nothing a live job has.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert

from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key, video_key
from serve_app.config import DAY_S
from serve_app.database.connection import Database
from serve_app.database.jobs.deletion import delete_ended_job, deleted_videos_with_files
from serve_app.database.schema import job_moves, jobs
from serve_app.jobs import FINAL, JobState
from serve_app.retention.orphans import MARKER_PREFIX, OrphanSweeper
from serve_app.retention.sweeper import BATCH
from tests.support.examples import examples
from tests.support.registry.retention import NOW, add_jobs, job_ids, job_row, new_id, orphan_sweeper, sweeper_on
from tests.support.servers.postgres import fresh_database
from tests.support.workers.memory_store import MemoryStore

IDS = [f"video_{n:032x}" for n in range(6)]
ORPHAN_DAYS = 1
LIFETIME_DAYS = {JobState.COMPLETED: 30, JobState.FAILED: 7, JobState.CANCELLED: 7}


@dataclass(frozen=True)
class Known:
    """A job in SQL: its state, and how many days ago it was made, and ended if it has."""

    state: JobState
    days: float


def _work(job_id: str) -> list[str]:
    return [prompt_embeds_key(job_id), latents_key(job_id), checkpoint_key(job_id, 1), checkpoint_key(job_id, 99999)]


def _video(job_id: str) -> list[str]:
    return [video_key(job_id), video_key(job_id, "thumbnail")]


OURS = [key for job_id in IDS for key in (*_work(job_id), *_video(job_id))]
UNDER_JOBS = [f"jobs/{job_id}/unknown" for job_id in IDS]
FOREIGN = [
    "ready",
    "models/abc/preview.json",
    "jobs/other/latents.safetensors",
    f"jobs/{IDS[0]}0/latents.safetensors",
    "videos/other.mp4",
    f"videos/{IDS[0]}.mp4.bak",
]

days = st.sampled_from([0.0, 0.5, 2.0, 6.9, 7.1, 29.9, 30.1, 400.0])
known_jobs = st.dictionaries(st.sampled_from(IDS), st.builds(Known, st.sampled_from(JobState), days))
buckets = st.dictionaries(st.sampled_from([*OURS, *UNDER_JOBS, *FOREIGN]), days)


def _survives(key: str, age_days: float, known: dict[str, Known]) -> bool:
    """The rules once more, told from the key's side."""
    job_id = next((i for i in IDS if f"/{i}/" in key or f"/{i}." in key), None)
    if job_id is None or key in FOREIGN:
        return True
    job, is_old = known.get(job_id), age_days > ORPHAN_DAYS
    if job is None:
        return key in UNDER_JOBS or not is_old
    if job.state not in FINAL:
        return True
    if key.startswith("jobs/") or job.days > LIFETIME_DAYS[job.state]:
        return False
    return job.state is JobState.COMPLETED or not is_old


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        folder: Path = tmp_path_factory.mktemp("property")
        database = Database(f"sqlite:///{folder / 'jobs.db'}")
        yield database
        database.close()
        return
    with fresh_database(request.getfixturevalue("postgres_uri")) as url:
        database = Database(url)
        yield database
        database.close()


def _fill(connection: Connection, known: dict[str, Known]) -> None:
    connection.execute(delete(job_moves))
    connection.execute(delete(jobs))
    for job_id, job in known.items():
        connection.execute(insert(jobs), job_row(job_id, job.state, ended_at=NOW - job.days * DAY_S))


def _bucket(ages: dict[str, float], has_dates: bool) -> MemoryStore:
    """Objects of these ages in days."""
    store = MemoryStore(objects=dict.fromkeys(ages, b"x"))
    store.now = datetime.fromtimestamp(NOW, UTC)
    store.answers_have_dates = has_dates
    store.modified = {key: store.now - timedelta(days=age) for key, age in ages.items()}
    return store


async def _old_marker(orphans: OrphanSweeper, store: MemoryStore) -> None:
    """The installation's marker has been in the bucket for long."""
    await orphans.sweep()
    for key in store.objects:
        if key.startswith(MARKER_PREFIX):
            store.modified[key] -= timedelta(days=999)


@settings(max_examples=examples(0.4), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=known_jobs, ages=buckets, has_dates=st.booleans())
def test_exactly_what_no_job_needs_is_deleted(
    database: Database, known: dict[str, Known], ages: dict[str, float], has_dates: bool
) -> None:
    store = _bucket(ages, has_dates)

    async def sweep() -> None:
        await database.run(_fill, known)
        orphans = orphan_sweeper(database, store)
        await _old_marker(orphans, store)
        await orphans.sweep()
        await sweeper_on(database, store).sweep_expired()
        await orphans.sweep()

    asyncio.run(sweep())
    left = {key for key in store.objects if not key.startswith(MARKER_PREFIX)}
    assert left == {key for key, age in ages.items() if _survives(key, age, known)}


async def test_two_registries_sweep_the_same_jobs_at_once(database_url: str) -> None:
    one = Database(database_url)
    other = Database(database_url)
    expired = await add_jobs(one, JobState.COMPLETED, 31, BATCH + 20)
    deleted = await add_jobs(one, JobState.COMPLETED, count=BATCH + 20)
    for job_id in deleted:
        await one.run(delete_ended_job, job_id, now=NOW)
    [live] = await add_jobs(one, JobState.QUEUED)
    orphans = [new_id() for _ in range(50)]
    store = _bucket(dict.fromkeys(map(video_key, [*expired, *deleted, *orphans, live]), 2.0), has_dates=True)
    await _old_marker(orphan_sweeper(one, store), store)
    sweepers = [sweeper_on(each, store) for each in (one, other)]
    await asyncio.gather(
        *(sweeper.sweep_expired() for sweeper in sweepers),
        *(sweeper.sweep_deleted() for sweeper in sweepers),
        *(orphan_sweeper(each, store).sweep() for each in (one, other)),
    )
    assert await job_ids(one) == {live}
    assert await one.run(deleted_videos_with_files, limit=10) == []
    assert [key for key in store.objects if not key.startswith(MARKER_PREFIX)] == [video_key(live)]
    one.close()
    other.close()
