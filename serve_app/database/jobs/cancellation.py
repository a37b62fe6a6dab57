"""Jobs that people or deadlines end in SQL, whoever holds them. Functions of a connection."""

from typing import Any

from sqlalchemy import Connection

from serve_app.database.jobs.deletion import DeletedVideo, delete_ended_job, get_deleted_video
from serve_app.database.jobs.moves import NO_LEASE, NO_USAGE, move, usage_fields
from serve_app.database.jobs.rows import lock_job
from serve_app.jobs import NOTHING_EXPIRES, Expiry, Job, JobError, JobState, Usage

CANCELLED = JobError("cancelled", "the job was cancelled")


def cancel(
    connection: Connection,
    job_id: str,
    *,
    now: float,
    lease: str | None = None,
    used: Usage = NO_USAGE,
    error: JobError = CANCELLED,
) -> Job | None:
    """End a job that is not final, whoever holds it; None if it is unknown. A final one stays as it is.

    Args:
        now: Unix seconds.
        lease: of the replica that reported `used`, which is counted only if this lease still holds
            the job.
        used: what is not in the row yet.
        error: why it is cancelled.
    """
    job = lock_job(connection, job_id)
    if job is None or job.final:
        return job
    changes: dict[str, Any] = {"error": error, "completed_at": now}
    if lease is not None and job.lease == lease:
        changes |= usage_fields(job, used)
    return move(connection, job, JobState.CANCELLED, now, error.code, **NO_LEASE, **changes)


def delete(
    connection: Connection,
    job_id: str,
    *,
    tenant: str | None,
    now: float,
    expiry: Expiry = NOTHING_EXPIRES,
    lease: str | None = None,
    used: Usage = NO_USAGE,
) -> Job | DeletedVideo | None:
    """Delete a job, and end it first if need be. None if there is no such job of this tenant.

    Args:
        tenant: None stands for all.
        now: Unix seconds.
        expiry: which jobs have expired; they are left to the sweeper.
        lease: as of `cancel`.
        used: as of `cancel`.

    Returns:
        The job as it ended, or its tombstone if it was deleted before.
    """
    job = lock_job(connection, job_id)
    found = job or get_deleted_video(connection, job_id)
    if found is None or tenant not in (None, found.tenant) or (job is not None and expiry.has_passed(job)):
        return None
    if job is None:
        return found
    ended = cancel(connection, job_id, now=now, lease=lease, used=used)
    delete_ended_job(connection, job_id, now=now)
    return ended
