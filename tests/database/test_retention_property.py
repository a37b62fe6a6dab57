"""Over any jobs and any objects in the bucket: what a sweep deletes, and that it touches nothing a live job has."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert

from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key, video_key
from deployments.messages import Stage
from deployments.storage.object_store import ListedObject, ObjectInfo
from serve_app.config import RetentionSettings
from serve_app.database.connection import Database
from serve_app.database.schema import job_moves, jobs
from serve_app.jobs import FINAL, JobState
from serve_app.retention.sweeper import MARKER_PREFIX, Sweeper
from tests.support.postgres import fresh_database

NOW = datetime(2027, 1, 1, tzinfo=UTC)
IDS = [f"video_{n:032x}" for n in range(6)]
LIMITS = RetentionSettings(completed_days=30, failed_days=7, orphan_days=1)
LIFETIME_DAYS = {JobState.COMPLETED: 30, JobState.FAILED: 7, JobState.CANCELLED: 7}


class MemoryBucket:
    """Keys and when they were written; three on a page. The marker is old enough from the first.

    tells_time: whether its answers have a Date.
    """

    def __init__(self, objects: dict[str, datetime], tells_time: bool) -> None:
        self.objects = dict(objects)
        self._answered_at = NOW if tells_time else None

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self.objects[key] = NOW - timedelta(days=999)

    async def stat(self, key: str) -> ObjectInfo | None:
        modified = self.objects.get(key)
        return None if modified is None else ObjectInfo(1, "e", modified, "text/plain", self._answered_at)

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        found = [ListedObject(key, at) for key, at in sorted(self.objects.items()) if key.startswith(prefix)]
        for first in range(0, len(found), 3):
            yield found[first : first + 3]

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


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
    job, is_old = known.get(job_id), age_days > LIMITS.orphan_days
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
        at = NOW.timestamp() - job.days * 86_400
        row = {
            "id": job_id,
            "model": "m",
            "spec": {},
            "state": job.state,
            "stage": Stage.SAMPLING,
            "attempt": 1,
            "step": 0,
            "progress": 0.0,
            "created_at": at,
            "completed_at": at if job.state in FINAL else None,
            "available_at": at,
            "seconds": {},
        }
        connection.execute(insert(jobs), row)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=known_jobs, bucket=buckets, tells_time=st.booleans())
def test_exactly_what_no_job_needs_is_deleted(
    database: Database, known: dict[str, Known], bucket: dict[str, float], tells_time: bool
) -> None:
    store = MemoryBucket({key: NOW - timedelta(days=age) for key, age in bucket.items()}, tells_time)

    async def sweep() -> None:
        await database.run(_fill, known)
        sweeper = Sweeper(database, store, LIMITS, 86_400.0, NOW.timestamp)
        await sweeper.sweep_orphans()
        await sweeper.sweep_expired()
        await sweeper.sweep_orphans()

    asyncio.run(sweep())
    left = {key for key in store.objects if not key.startswith(MARKER_PREFIX)}
    assert left == {key for key, age in bucket.items() if _survives(key, age, known)}
