"""What the sweeper asks and tells of jobs that have ended."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from serve_app.database.job_rows import batches
from serve_app.database.schema import ENDED, ENDED_WITH_FILES, idempotency_keys, job_moves, jobs
from serve_app.database.webhooks import forget_deliveries_of
from serve_app.jobs import JobState


def with_work_files(connection: Connection, limit: int) -> list[str]:
    """Ids of jobs that have ended and whose files under jobs/<id>/ may still be there, longest ended first."""
    query = select(jobs.c.id).where(ENDED_WITH_FILES).order_by(jobs.c.completed_at, jobs.c.id)
    return list(connection.scalars(query.limit(limit)))


def work_files_cleared(connection: Connection, ids: Sequence[str]) -> None:
    """Those files are deleted. A job that has not ended may write new ones and stays as it is."""
    for some in batches(ids):
        connection.execute(update(jobs).where(jobs.c.id.in_(some), ENDED).values(has_work_files=False))


def expired(
    connection: Connection, completed_before: float | None, failed_before: float | None, limit: int
) -> list[str]:
    """Ids of the jobs that ended before then (Unix seconds), longest ended first; None keeps them for ever.

    Args:
        completed_before: for completed jobs. failed_before: for failed and cancelled ones.
    """
    found: list[tuple[float, str]] = []
    kept = {
        JobState.COMPLETED: completed_before,
        JobState.FAILED: failed_before,
        JobState.CANCELLED: failed_before,
    }
    for state, before in kept.items():
        if before is not None:
            query = select(jobs.c.completed_at, jobs.c.id).where(jobs.c.state == state, jobs.c.completed_at < before)
            query = query.where(ENDED).order_by(jobs.c.completed_at, jobs.c.id).limit(limit)
            found += [(at, job_id) for at, job_id in connection.execute(query)]
    return [job_id for _, job_id in sorted(found)[:limit]]


def delete_jobs(connection: Connection, ids: Sequence[str]) -> None:
    """Forget these jobs with their histories and idempotency keys; one that has not ended stays as it is."""
    for some in batches(ids):
        gone = delete(jobs).where(jobs.c.id.in_(some), ENDED).returning(jobs.c.id)
        deleted = list(connection.scalars(gone))
        connection.execute(delete(job_moves).where(job_moves.c.job_id.in_(deleted)))
        connection.execute(delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(deleted)))
        forget_deliveries_of(connection, deleted)


def states_of(connection: Connection, ids: Sequence[str]) -> dict[str, JobState]:
    """The states of those of the jobs that exist."""
    found: dict[str, JobState] = {}
    for some in batches(ids):
        rows = connection.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(some)))
        found |= {job_id: JobState(state) for job_id, state in rows}
    return found
