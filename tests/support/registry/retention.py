"""What the tests of the sweepers share: a store whose clock is put forward, a database that fails, jobs and files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Concatenate
from uuid import uuid4

from sqlalchemy import Connection, insert, select

from deployments.errors import RegistryUnavailableError, StorageUnavailableError
from deployments.keys import checkpoint_key, latents_key, prompt_embeds_key, video_key
from deployments.messages import Stage, VideoSpec
from deployments.settings import StorageSettings
from deployments.storage.object_store import Bucket, ListedObject, ObjectInfo, ObjectStore
from serve_app.config import DAY_S, RetentionSettings
from serve_app.database.connection import Database, P, T
from serve_app.database.schema import jobs
from serve_app.jobs import FINAL, JobState
from serve_app.retention.orphans import MARKER_PREFIX, OrphanSweeper
from serve_app.retention.sweeper import Sweeper

NOW = 1_800_000_000.0
KEEP_KEYS_S = DAY_S
SPEC = VideoSpec("a", "", 64, 64, 7, 8, 4, 1.0, 0)
LIVE = [state for state in JobState if state not in FINAL]


class AgingStore(ObjectStore):
    """The real store whose clock can be put forward, so that what was written before is that much older."""

    def __init__(self, settings: StorageSettings) -> None:
        super().__init__(settings)
        self.ahead = timedelta()  # of the store's clock
        self.later: dict[str, timedelta] = {}  # how much later than it was a key is listed as written
        self.deletes_left = 10**9  # after so many requests to delete the store is away

    async def stat(self, key: str) -> ObjectInfo | None:
        info = await super().stat(key)
        if info is None:
            return None
        assert info.answered_at is not None
        return replace(info, answered_at=info.answered_at + self.ahead)

    async def list_pages(self, prefix: str) -> AsyncIterator[list[ListedObject]]:
        async for page in super().list_pages(prefix):
            yield [self._aged(entry) for entry in page]

    def _aged(self, entry: ListedObject) -> ListedObject:
        assert entry.modified is not None
        return ListedObject(entry.key, entry.modified + self.later.get(entry.key, timedelta()))

    async def delete_many(self, keys: Sequence[str]) -> None:
        if self.deletes_left <= 0:
            raise StorageUnavailableError("the object store is away")
        self.deletes_left -= 1
        await super().delete_many(keys)

    async def clear(self) -> None:
        """Delete all objects, also while it is away."""
        await super().delete_many(await self.list_keys(""))


class CrashingDatabase(Database):
    """The real database, away for the functions in `away`, and with a defect in those in `broken`."""

    away: frozenset[Callable[..., Any]] = frozenset()
    broken: frozenset[Callable[..., Any]] = frozenset()

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if function in self.away:
            raise RegistryUnavailableError("the job database does not work")
        if function in self.broken:
            raise ArithmeticError("a defect")
        return await super().run(function, *args, **kwargs)


def new_id() -> str:
    return f"video_{uuid4().hex}"


async def add_jobs(database: Database, state: JobState, ended_days_ago: float = 0.0, count: int = 1) -> list[str]:
    """Jobs in SQL; returns their ids."""
    job_ids = [new_id() for _ in range(count)]

    def write(connection: Connection) -> None:
        connection.execute(insert(jobs), [job_row(job_id, state, NOW - ended_days_ago * DAY_S) for job_id in job_ids])

    await database.run(write)
    return job_ids


def job_row(job_id: str, state: JobState, ended_at: float) -> dict[str, Any]:
    return {
        "id": job_id,
        "model": "m",
        "spec": SPEC.to_json(),
        "state": state,
        "stage": Stage.DECODING,
        "attempt": 1,
        "step": 0,
        "progress": 0.0,
        "created_at": ended_at - 60,
        "completed_at": ended_at if state in FINAL else None,
        "available_at": ended_at - 60,
        "seconds": {},
    }


async def job_ids(database: Database) -> set[str]:
    """Of all jobs in SQL."""

    def read(connection: Connection) -> set[str]:
        return set(connection.execute(select(jobs.c.id)).scalars())

    return await database.run(read)


def work_files(job_id: str) -> set[str]:
    return {prompt_embeds_key(job_id), checkpoint_key(job_id, 2), checkpoint_key(job_id, 4), latents_key(job_id)}


def video_files(job_id: str) -> set[str]:
    return {video_key(job_id), video_key(job_id, "thumbnail"), video_key(job_id, "spritesheet")}


def all_files(job_id: str) -> set[str]:
    return work_files(job_id) | video_files(job_id)


async def put_files(store: ObjectStore, keys: set[str]) -> None:
    waiting = sorted(keys)
    for first in range(0, len(waiting), 50):
        await asyncio.gather(*(store.put(key, b"x", "text/plain") for key in waiting[first : first + 50]))


async def files_left(store: ObjectStore) -> set[str]:
    """All keys but the markers of installations."""
    return {key for key in await store.list_keys("") if not key.startswith(MARKER_PREFIX)}


def sweeper_on(
    database: Database, store: Bucket, clock: Callable[[], float] = lambda: NOW, **settings: float | None
) -> Sweeper:
    return Sweeper(database, store, RetentionSettings(**settings), KEEP_KEYS_S, clock)


def orphan_sweeper(database: Database, store: Bucket, orphan_days: float = 1) -> OrphanSweeper:
    return OrphanSweeper(database, store, orphan_days, lambda: NOW)


async def write_marker(sweeper: OrphanSweeper, store: AgingStore, days_ago: float) -> None:
    """The installation's marker is in the bucket, and that many days have passed."""
    await sweeper.sweep()
    store.ahead = timedelta(days=days_ago)
