"""Orphans: files in the bucket that no job needs, left by a crash or by a replica that wrote after it lost its job.

Each installation, which is a database with an id of its own, writes a marker into the bucket.
Orphans are deleted only while there is no marker but the installation's own, and that one is older
than `orphan_days`: what looks like an orphan may be another installation's video. A database that
was restored from a backup has the same id but does not know the jobs that came after the backup:
their videos are orphans. `orphan_days` is the time to notice that. It must be longer than the time
since the backup, or the first sweep deletes the videos that are older.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from deployments.keys import PROTEIN_PREFIX, VIDEO_PREFIX, WORK_PREFIX, FileKind, JobFile, is_of_proteins, parse_key
from deployments.storage.object_store import Bucket, ListedObject, ObjectInfo
from serve_app.database.connection import Database
from serve_app.database.jobs.deletion import job_states
from serve_app.database.meta import installation_id
from serve_app.jobs import FINAL, JobState

log = logging.getLogger("ray.serve")

MARKER_PREFIX = "mochi-serve/installations/"
MARKER_TEXT = (
    b"A mochi-serve database whose jobs have their files in this bucket. While more than one is named here, files "
    b"that belong to no job are not swept. Delete this object only if that installation is gone for good.\n"
)


def is_needed(file: JobFile, state: JobState | None) -> bool:
    """Whether its job, in `state`, may still need a file. None: there is no such job.

    Work files are needed until the job ends. The result is needed from the moment that it is written
    until it is deleted with its job. A video that failed or was cancelled needs neither; what was done of a file of
    proteins can be had until its job is deleted.
    """
    if state is None:
        return False
    if state not in FINAL:
        return True
    return file.kind is FileKind.RESULT and (state is JobState.COMPLETED or is_of_proteins(file.job_id))


class OrphanSweeper:
    """Deletes the orphans that are older than `orphan_days`.

    Args:
        database: of the jobs.
        store: the bucket their files are in. Only keys that this project writes are ever deleted.
        orphan_days: by the store's clock.
        clock: Unix seconds; stands in for the store's clock where its answers have no date.
    """

    def __init__(self, database: Database, store: Bucket, orphan_days: float, clock: Callable[[], float]) -> None:
        self._database = database
        self._store = store
        self._orphan_days = orphan_days
        self._clock = clock

    async def sweep(self) -> int:
        """Delete them; returns how many there were.

        Raises:
            WorkerError: the object store is away or refuses.
            RegistryUnavailableError: the database is away.
        """
        written_before = await self._written_before()
        if written_before is None:
            return 0
        count = 0
        for prefix in (WORK_PREFIX, VIDEO_PREFIX, PROTEIN_PREFIX):
            async for page in self._store.list_pages(prefix):
                keys = await self._orphans(page, written_before)
                await self._store.delete_many(keys)
                count += len(keys)
        if count:
            log.info(f"retention: deleted {count} files that belonged to no job")
        return count

    async def _written_before(self) -> datetime | None:
        """By the store's clock: what was written before this time may be an orphan. None: nothing may."""
        installation: str = await self._database.run(installation_id)
        marker = await self._own_marker(f"{MARKER_PREFIX}{installation}")
        if marker is None or marker.modified is None or await self._is_shared(installation):
            return None
        now = marker.answered_at or datetime.fromtimestamp(self._clock(), UTC)
        before = now - timedelta(days=self._orphan_days)
        return before if marker.modified < before else None

    async def _own_marker(self, key: str) -> ObjectInfo | None:
        """The installation's own marker, written first if it is missing."""
        marker = await self._store.stat(key)
        if marker is None:
            await self._store.put(key, MARKER_TEXT, "text/plain")
            marker = await self._store.stat(key)
        return marker

    async def _is_shared(self, installation: str) -> bool:
        own = f"{MARKER_PREFIX}{installation}"
        others = [m.key async for page in self._store.list_pages(MARKER_PREFIX) for m in page if m.key != own]
        if others:
            log.error(
                f"retention: the bucket also holds files of other databases ({', '.join(others)}); files that belong "
                f"to no job are not swept. Give each installation a bucket of its own (storage.bucket). If the other "
                f"one is gone for good, save the videos of it that you want and delete its object of that name; this "
                f"installation is {installation}"
            )
        return bool(others)

    async def _orphans(self, listed: Sequence[ListedObject], written_before: datetime) -> list[str]:
        """Those of the listed keys; an object whose age is unknown is none."""
        old = (entry.key for entry in listed if entry.modified is not None and entry.modified < written_before)
        files = [file for file in map(parse_key, old) if file is not None]
        if not files:
            return []
        # Read after the listing, never before it: a job is in SQL before any file of it is in
        # storage.
        states = await self._database.run(job_states, sorted({file.job_id for file in files}))
        return [file.key for file in files if not is_needed(file, states.get(file.job_id))]
