"""Jobs in SQL: every change of a job, and what a registry asks of all of them. Functions of a connection.

A job changes its state only through `_move`, which checks the table of allowed moves and writes the
history in the same transaction. A function locks the row that it changes (in Postgres; in SQLite a
transaction is alone), so that two registries on one database never both hold a job, and neither
undoes what the other counted.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from deployments.messages import Stage
from serve_app.database.access import record_usage
from serve_app.database.job_rows import JOB, batches, changed_columns, find_jobs, lock_job, read_job
from serve_app.database.retention import DeletedVideo, delete_ended_job, get_deleted_video
from serve_app.database.schema import ENDED, LEASED, WAITING, job_moves, jobs
from serve_app.database.totals import INPUT_UNUSABLE, count_end, count_retry
from serve_app.database.webhooks import add_delivery
from serve_app.jobs import (
    NEXT_STAGE,
    NOTHING_EXPIRES,
    STAGE_BEFORE,
    Expiry,
    Job,
    JobError,
    JobState,
    Move,
    Usage,
    check_move,
    first_move,
    overall_progress,
)

NO_USAGE = Usage()
CANCELLED = JobError("cancelled", "the job was cancelled")
NO_LEASE: dict[str, Any] = {"lease": None, "lease_owner": None, "lease_expires_at": None}


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
            claimed.append(_move(connection, job, JobState(stage), now, "claimed", **lease_fields))
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


def finish_stage(
    connection: Connection,
    job_id: str,
    lease: str,
    *,
    seconds: Mapping[str, float],
    now: float,
    used: Usage,
) -> Job | None:
    """The stage's output is in storage: the job goes on to the next stage, or is completed.

    Args:
        seconds: wall time by part of the stage.
        now: Unix seconds.
        used: what is not in the row yet.

    Returns:
        The job as it is now; None if the lease is not this one.
    """
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = _usage_fields(job, used)
    changes["seconds"] = {**job.seconds, **{f"{job.stage}.{part}": s for part, s in seconds.items()}}
    next_stage = NEXT_STAGE[job.stage]
    if next_stage is None:
        changes |= {"completed_at": now, "progress": 1.0}
        return _move(connection, job, JobState.COMPLETED, now, "done", **NO_LEASE, **changes)
    changes |= {
        "stage": next_stage,
        "available_at": now,
        "step": job.spec.num_inference_steps if job.stage is Stage.SAMPLING else job.step,
        "progress": overall_progress(next_stage, 0, 1),
    }
    return _move(connection, job, JobState.QUEUED, now, f"{job.stage} done", **NO_LEASE, **changes)


def give_back(connection: Connection, job_id: str, lease: str, *, now: float, note: str) -> Job | None:
    """Undo a claim that never reached a replica; costs no attempt. None if the lease is not this one."""
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    started_at = None if is_first_claim(connection, job) else job.started_at
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, available_at=now, started_at=started_at)


def park(
    connection: Connection, job_id: str, lease: str, *, now: float, step: int, used: Usage, note: str
) -> Job | None:
    """Back to the queue with all `step` steps kept; costs no attempt. None if the lease is not this one."""
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes: dict[str, Any] = {"checkpoint_step": step, "parks": job.parks + 1, "available_at": now}
    changes |= _step_fields(job, step) | _usage_fields(job, used)
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes)


def retry(
    connection: Connection,
    job_id: str,
    lease: str,
    *,
    now: float,
    available_at: float,
    code: str,
    note: str,
    attempt: int,
    used: Usage,
    deaths: int,
    died_at: float | None,
) -> Job | None:
    """Back to the queue of the same stage, as `attempt` from the last checkpoint, not before `available_at`.

    Args:
        now: Unix seconds.
        available_at: Unix seconds.
        code: of the failure.
        note: why, for people.
        attempt: the number of the next one.
        used: what is not in the row yet.
        deaths: as in Job, from now on.
        died_at: as in Job, from now on.

    Returns:
        The job as it waits; None if the lease is not this one.
    """
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = {"attempt": attempt, "available_at": available_at, "deaths": deaths, "died_at": died_at}
    if job.stage is Stage.SAMPLING:
        changes |= _step_fields(job, job.checkpoint_step)
    count_retry(connection, job, code, now=now)
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes, **_usage_fields(job, used))


def go_back(
    connection: Connection, job_id: str, lease: str, *, now: float, available_at: float, note: str, used: Usage
) -> Job | None:
    """To the queue of the stage before, whose output cannot be used; costs no attempt.

    A sampler that is to make its latents again begins at its last checkpoint. One that lacks its
    embeddings found no checkpoint that it could use.

    Args:
        now: Unix seconds.
        available_at: Unix seconds.
        note: why, for people.
        used: what is not in the row yet.

    Returns:
        The job as it waits; None if the lease is not this one.
    """
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    stage = STAGE_BEFORE[job.stage]
    step = job.checkpoint_step if stage is Stage.SAMPLING else 0
    changes = {"stage": stage, "remakes": job.remakes + 1, "available_at": available_at, "checkpoint_step": step}
    changes |= _step_fields(replace(job, stage=stage), step) | _usage_fields(job, used)
    count_retry(connection, job, INPUT_UNUSABLE, now=now)
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes)


def is_first_claim(connection: Connection, job: Job) -> bool:
    """Whether `started_at` of a job that is held tells of the claim that holds it now: no replica had it before."""
    moves = select(job_moves.c.at).where(job_moves.c.job_id == job.id)
    return connection.scalar(moves.order_by(job_moves.c.id.desc()).limit(1)) == job.started_at


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
        changes |= _usage_fields(job, used)
    return _move(connection, job, JobState.CANCELLED, now, error.code, **NO_LEASE, **changes)


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


def fail(connection: Connection, job_id: str, lease: str, *, now: float, error: JobError, used: Usage) -> Job | None:
    """End the job as failed. None if the lease is not this one."""
    job = _lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = {"error": error, "completed_at": now}
    return _move(connection, job, JobState.FAILED, now, error.code, **NO_LEASE, **changes, **_usage_fields(job, used))


def queued_ids(connection: Connection) -> list[tuple[str, Stage]]:
    """Every waiting job and what it waits for, from an index alone."""
    rows = connection.execute(select(jobs.c.id, jobs.c.stage).where(WAITING).order_by(jobs.c.stage, jobs.c.id))
    return [(job_id, Stage(stage)) for job_id, stage in rows]


def leased_jobs(connection: Connection) -> list[Job]:
    """Every job that a replica holds, or held when its registry died."""
    return find_jobs(connection, JOB.where(LEASED).order_by(jobs.c.id))


def count_live(connection: Connection) -> dict[tuple[JobState, Stage], int]:
    """How many jobs are in each live state and stage."""
    counts = select(jobs.c.state, jobs.c.stage, func.count()).group_by(jobs.c.state, jobs.c.stage)
    rows = [row for live in (WAITING, LEASED) for row in connection.execute(counts.where(live))]
    return {(JobState(state), Stage(stage)): count for state, stage, count in rows}


def history(connection: Connection, job_id: str, *, expiry: Expiry = NOTHING_EXPIRES) -> list[Move]:
    """The job's moves in order, beginning with its acceptance; empty if it is unknown, or has expired."""
    job = read_job(connection, job_id, expiry=expiry)
    if job is None:
        return []
    columns = (job_moves.c.at, job_moves.c.state, job_moves.c.stage, job_moves.c.attempt, job_moves.c.note)
    query = select(*columns).where(job_moves.c.job_id == job_id).order_by(job_moves.c.id)
    moves = [
        Move(at, JobState(state), Stage(stage), attempt, note)
        for at, state, stage, attempt, note in connection.execute(query)
    ]
    return [first_move(job.created_at), *moves]


def last_completed(connection: Connection, *, limit: int) -> list[Job]:
    """The jobs that were completed last, newest first: what work costs is learned from them."""
    done = JOB.where(jobs.c.state == JobState.COMPLETED, ENDED)
    newest = (jobs.c.completed_at.desc(), jobs.c.id.desc())
    return find_jobs(connection, done.order_by(*newest).limit(limit))


def _step_fields(job: Job, step: int) -> dict[str, Any]:
    return {"step": step, "progress": overall_progress(job.stage, step, job.spec.num_inference_steps)}


def _usage_fields(job: Job, used: Usage) -> dict[str, Any]:
    return {"steps_run": job.steps_run + used.steps, "device_s": job.device_s + used.device_s}


def _lock_leased(connection: Connection, job_id: str, lease: str) -> Job | None:
    """As `lock_job`; None also if the lease is no longer this one."""
    job = lock_job(connection, job_id)
    return job if job is not None and job.lease == lease else None


def _move(connection: Connection, job: Job, state: JobState, now: float, note: str, **changes: Any) -> Job:
    """Write the state and other changed fields of a job that this transaction has locked, and its history."""
    check_move(job.state, state)
    changes |= {"state": state, "moves": job.moves + 1}
    moved = replace(job, **changes)
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(**changed_columns(changes)))
    move = Move(now, moved.state, moved.stage, moved.attempt, note)
    connection.execute(insert(job_moves).values(job_id=job.id, **asdict(move)))
    if moved.final:
        add_delivery(connection, moved, now=now)
        record_usage(connection, moved.tenant, ended_at=now, gpu_seconds=moved.device_s)
        count_end(connection, moved)
    return replace(moved, last_move=move)
