"""How a stage of a job ends in SQL: done, parked, tried again, sent back or failed. Functions of a connection."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from deployments.messages import STEPPED, Stage
from serve_app.database.jobs.moves import NO_LEASE, lock_leased, move, step_fields, usage_fields
from serve_app.database.jobs.totals import INPUT_UNUSABLE, count_retry
from serve_app.jobs import NEXT_STAGE, STAGE_BEFORE, Job, JobError, JobState, Usage, overall_progress


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
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = usage_fields(job, used)
    changes["seconds"] = {**job.seconds, **{f"{job.stage}.{part}": s for part, s in seconds.items()}}
    next_stage = NEXT_STAGE[job.stage]
    if next_stage is None:
        changes |= {"completed_at": now, "progress": 1.0, "step": job.spec.steps if job.stage in STEPPED else job.step}
        return move(connection, job, JobState.COMPLETED, now, "done", **NO_LEASE, **changes)
    changes |= {
        "stage": next_stage,
        "available_at": now,
        "step": job.spec.steps if job.stage in STEPPED else job.step,
        "progress": overall_progress(next_stage, 0, 1),
    }
    return move(connection, job, JobState.QUEUED, now, f"{job.stage} done", **NO_LEASE, **changes)


def park(
    connection: Connection, job_id: str, lease: str, *, now: float, step: int, used: Usage, note: str
) -> Job | None:
    """Back to the queue with all `step` steps kept; costs no attempt. None if the lease is not this one."""
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes: dict[str, Any] = {"checkpoint_step": step, "parks": job.parks + 1, "available_at": now}
    changes |= step_fields(job, step) | usage_fields(job, used)
    return move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes)


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
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = {"attempt": attempt, "available_at": available_at, "deaths": deaths, "died_at": died_at}
    if job.stage in STEPPED:
        changes |= step_fields(job, job.checkpoint_step)
    count_retry(connection, job, code, now=now)
    return move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes, **usage_fields(job, used))


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
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    stage = STAGE_BEFORE[job.stage]
    step = job.checkpoint_step if stage is Stage.SAMPLING else 0
    changes = {"stage": stage, "remakes": job.remakes + 1, "available_at": available_at, "checkpoint_step": step}
    changes |= step_fields(replace(job, stage=stage), step) | usage_fields(job, used)
    count_retry(connection, job, INPUT_UNUSABLE, now=now)
    return move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **changes)


def fail(connection: Connection, job_id: str, lease: str, *, now: float, error: JobError, used: Usage) -> Job | None:
    """End the job as failed. None if the lease is not this one."""
    job = lock_leased(connection, job_id, lease)
    if job is None:
        return None
    changes = {"error": error, "completed_at": now}
    return move(connection, job, JobState.FAILED, now, error.code, **NO_LEASE, **changes, **usage_fields(job, used))
