"""Jobs that have ended and their files: what the sweeper asks of SQL, and what it writes. Functions of a connection.

A video that its client deleted: its job is deleted at once, its files soon after, and in between
there is a tombstone, a row of `deleted_videos`. The tombstone answers a repeated request to delete,
and names the files to the sweeper. They are deleted twice, since a worker that lost its job may
write for a while longer: `files_gone_at`, when the files were last deleted, is final only from
LATE_WRITES_S after the job was deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from serve_app.database.jobs.rows import batches, lock_job
from serve_app.database.jobs.webhooks import delete_deliveries
from serve_app.database.schema import (
    DELETED_WITH_FILES,
    ENDED,
    ENDED_WITH_FILES,
    deleted_videos,
    idempotency_keys,
    job_moves,
    jobs,
)
from serve_app.jobs import Job, JobState

# A worker hears of the end of its job within seconds. One that waits for a store that is away goes
# on for a minute, and for what one request may take. What is written later still is an orphan.
LATE_WRITES_S = 300.0

_FILES_ARE_GONE = deleted_videos.c.files_gone_at >= deleted_videos.c.deleted_at + LATE_WRITES_S


@dataclass(frozen=True, slots=True)
class DeletedVideo:
    """A tombstone."""

    id: str
    tenant: str
    deleted_at: float  # Unix seconds


def jobs_with_work_files(connection: Connection, *, limit: int) -> list[str]:
    """Ids of jobs that have ended and whose files under jobs/<id>/ may still be there, longest ended first."""
    query = select(jobs.c.id).where(ENDED_WITH_FILES).order_by(jobs.c.completed_at, jobs.c.id)
    return list(connection.scalars(query.limit(limit)))


def mark_work_files_deleted(connection: Connection, ids: Sequence[str]) -> None:
    """The work files of these jobs are deleted. A job that has not ended may write new ones and stays as it is."""
    for batch in batches(ids):
        connection.execute(update(jobs).where(jobs.c.id.in_(batch), ENDED).values(has_work_files=False))


def expired_jobs(
    connection: Connection, *, completed_before: float | None, failed_before: float | None, limit: int
) -> list[str]:
    """Ids of jobs that ended before a time, Unix seconds, longest ended first; None keeps them for ever.

    Args:
        completed_before: for completed jobs.
        failed_before: for failed and cancelled jobs.
        limit: the most ids.
    """
    found: list[tuple[float, str]] = []
    ended_before = {
        JobState.COMPLETED: completed_before,
        JobState.FAILED: failed_before,
        JobState.CANCELLED: failed_before,
    }
    for state, before in ended_before.items():
        if before is not None:
            query = select(jobs.c.completed_at, jobs.c.id).where(jobs.c.state == state, jobs.c.completed_at < before)
            query = query.where(ENDED).order_by(jobs.c.completed_at, jobs.c.id).limit(limit)
            found += [(at, job_id) for at, job_id in connection.execute(query)]
    return [job_id for _, job_id in sorted(found)[:limit]]


def delete_expired_jobs(connection: Connection, ids: Sequence[str]) -> None:
    """Delete these jobs with histories, idempotency keys and webhooks; one that has not ended stays as it is."""
    for batch in batches(ids):
        deleted = list(connection.scalars(delete(jobs).where(jobs.c.id.in_(batch), ENDED).returning(jobs.c.id)))
        _delete_history_and_key(connection, deleted)
        delete_deliveries(connection, deleted)


def job_states(connection: Connection, ids: Sequence[str]) -> dict[str, JobState]:
    """The states of those of the jobs that exist."""
    states: dict[str, JobState] = {}
    for batch in batches(ids):
        rows = connection.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(batch)))
        states |= {job_id: JobState(state) for job_id, state in rows}
    return states


def delete_ended_job(connection: Connection, job_id: str, *, now: float) -> Job | None:
    """Delete a job that has ended, with its history and its idempotency key, and write its tombstone.

    Its webhooks stay and are still sent. The sweeper deletes the files.

    Returns:
        The job as it was; None if it is unknown. One that is not final stays: cancel it first.
    """
    job = lock_job(connection, job_id)
    if job is None or not job.final:
        return job
    connection.execute(delete(jobs).where(jobs.c.id == job_id))
    _delete_history_and_key(connection, [job_id])
    tombstone = {"id": job_id, "tenant": job.tenant, "deleted_at": now}
    connection.execute(insert(deleted_videos).values(**tombstone))
    return job


def get_deleted_video(connection: Connection, job_id: str) -> DeletedVideo | None:
    """The tombstone of a video that was deleted within the last day or so."""
    columns = deleted_videos.c.id, deleted_videos.c.tenant, deleted_videos.c.deleted_at
    row = connection.execute(select(*columns).where(deleted_videos.c.id == job_id)).one_or_none()
    return None if row is None else DeletedVideo(*row)


def deleted_videos_with_files(connection: Connection, *, limit: int) -> list[str]:
    """Ids of deleted videos whose files have not been deleted yet, longest deleted first."""
    return _deleted_ids(connection, DELETED_WITH_FILES, limit=limit)


def deleted_videos_with_late_files(connection: Connection, *, now: float, limit: int) -> list[str]:
    """Ids of deleted videos that may have files again, written after they were deleted, longest deleted first."""
    ended = deleted_videos.c.deleted_at <= now - LATE_WRITES_S
    return _deleted_ids(connection, ended, ~_FILES_ARE_GONE, limit=limit)


def mark_video_files_deleted(connection: Connection, ids: Sequence[str], *, now: float) -> None:
    """The files of these deleted videos are gone; `now` is when the deletion of the files began."""
    for batch in batches(ids):
        connection.execute(update(deleted_videos).where(deleted_videos.c.id.in_(batch)).values(files_gone_at=now))


def forget_deleted_videos(connection: Connection, *, before: float) -> int:
    """Remove the tombstones from before that time whose files are gone for good; returns how many."""
    return connection.execute(
        delete(deleted_videos).where(deleted_videos.c.deleted_at < before, _FILES_ARE_GONE)
    ).rowcount


def _delete_history_and_key(connection: Connection, ids: Sequence[str]) -> None:
    connection.execute(delete(job_moves).where(job_moves.c.job_id.in_(ids)))
    connection.execute(delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(ids)))


def _deleted_ids(connection: Connection, *conditions: ColumnElement[bool], limit: int) -> list[str]:
    query = select(deleted_videos.c.id).where(*conditions)
    return list(connection.scalars(query.order_by(deleted_videos.c.deleted_at, deleted_videos.c.id).limit(limit)))
