"""Deadlines of jobs in SQL: which are over, and what becomes of their jobs. Functions of a connection.

Any registry on the database may do it: the row is locked and looked at again, so a job ends once.
"""

from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from serve_app.database.jobs.cancellation import cancel
from serve_app.database.jobs.claims import is_first_claim
from serve_app.database.jobs.moves import NO_USAGE
from serve_app.database.jobs.rows import lock_job
from serve_app.database.schema import WITH_DEADLINE, jobs
from serve_app.jobs import Job, JobError, Usage


def next_deadline(connection: Connection) -> float | None:
    """The first deadline of all jobs that have not ended, Unix seconds; None if there is none."""
    first: float | None = connection.scalar(select(func.min(jobs.c.cancel_at)).where(WITH_DEADLINE))
    return first


def due_ids(connection: Connection, *, now: float, limit: int) -> list[str]:
    """The jobs whose deadline is over at `now`, Unix seconds; longest over first, at most `limit`."""
    due = select(jobs.c.id).where(WITH_DEADLINE, jobs.c.cancel_at <= now)
    return list(connection.scalars(due.order_by(jobs.c.cancel_at, jobs.c.id).limit(limit)))


def cancel_due(
    connection: Connection,
    job_id: str,
    *,
    now: float,
    lease: str | None = None,
    has_begun: bool = True,
    used: Usage = NO_USAGE,
) -> Job | None:
    """Cancel a job whose deadline is over.

    Args:
        now: Unix seconds.
        lease: as of `cancel`.
        has_begun: whether the replica that has this lease began the job.
        used: as of `cancel`.

    Returns:
        The job as it ended, or had ended a moment earlier; None if it is unknown or has time left.
    """
    job = lock_job(connection, job_id)
    if job is None or job.cancel_at is None:
        return None
    if not job.final and job.cancel_at > now:
        return None
    is_on_its_way = job.lease is not None and job.lease == lease and not has_begun
    is_started = job.started_at is not None and not (is_on_its_way and is_first_claim(connection, job))
    error = _missed(job.cancel_at, is_started)
    return cancel(connection, job_id, now=now, lease=lease, used=used, error=error)


def _missed(cancel_at: float, is_started: bool) -> JobError:
    deadline = f"{datetime.fromtimestamp(cancel_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if is_started:
        return JobError(
            "deadline_not_ready",
            f"the video was begun and not completed by its deadline, {deadline}; ask for it again with a longer "
            "cancel_after, or for fewer steps or frames",
        )
    return JobError(
        "deadline_not_started",
        f"no replica was free to begin the video before its deadline, {deadline}; ask for it again with a longer "
        "cancel_after or a higher priority, or when fewer videos wait",
    )
