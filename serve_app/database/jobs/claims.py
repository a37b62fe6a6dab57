"""Claims of waiting jobs in SQL, and what is written while their lease lasts. Functions of a connection."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from deployments.messages import Stage
from serve_app.database.jobs.moves import NO_LEASE, lock_leased, move
from serve_app.database.jobs.rows import JOB, batches, find_jobs
from serve_app.database.schema import WAITING, job_moves, jobs
from serve_app.jobs import Job, JobState, Usage


def claim(
    connection: Connection, *, stage: Stage, leases: Mapping[str, str], owner: str, now: float, lease_s: float
) -> list[Job]:
    """Give those of the jobs that still wait for `stage` to `owner`; returns them.

    Jobs that another registry claims at this moment are passed over, not waited for.

    Args:
        leases: the lease of each job, by its id.
    """
    lease_fields: dict[str, Any] = {"lease_owner": owner, "lease_expires_at": now + lease_s}
    claimed = []
    for ids in batches(sorted(leases)):
        waiting = JOB.where(jobs.c.id.in_(ids), WAITING, jobs.c.stage == stage).order_by(jobs.c.id)
        for job in find_jobs(connection, waiting.with_for_update(skip_locked=True)):
            lease_fields["lease"] = leases[job.id]
            lease_fields["started_at"] = now if job.started_at is None else job.started_at
            claimed.append(move(connection, job, JobState(stage), now, "claimed", **lease_fields))
    return claimed


def renew(
    connection: Connection,
    job_id: str,
    lease: str,
    *,
    expires_at: float,
    step: int,
    progress: float,
    used: Usage,
) -> bool:
    """Extend the lease, write the progress and add what was used; False if the lease is no longer this one."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease == lease)
    usage = {"steps_run": jobs.c.steps_run + used.steps, "device_s": jobs.c.device_s + used.device_s}
    values = {"lease_expires_at": expires_at, "step": step, "progress": progress, **usage}
    return bool(connection.execute(query.values(**values)).rowcount)


def keep_checkpoint(connection: Connection, job_id: str, lease: str, *, step: int) -> bool:
    """A new attempt may begin at `step`; False if the lease is no longer this one."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease == lease)
    return bool(connection.execute(query.values(checkpoint_step=step)).rowcount)


def give_back(connection: Connection, job_id: str, lease: str, *, now: float, note: str) -> Job | None:
    """Undo a claim that never reached a replica; costs no attempt. None if the lease is not this one."""
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    started_at = None if is_first_claim(connection, job) else job.started_at
    return move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, available_at=now, started_at=started_at)


def is_first_claim(connection: Connection, job: Job) -> bool:
    """Whether `started_at` of a job that is held tells of the claim that holds it now: no replica had it before."""
    moves = select(job_moves.c.at).where(job_moves.c.job_id == job.id)
    return connection.scalar(moves.order_by(job_moves.c.id.desc()).limit(1)) == job.started_at
