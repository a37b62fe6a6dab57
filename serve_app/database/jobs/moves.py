"""How a job changes its state in SQL: a move, and the history of all moves. Functions of a connection.

A job changes its state only through `move`, which checks the table of allowed moves and writes the
history in the same transaction. A function that moves a job locks its row first (in Postgres; in SQLite
a transaction is alone), so that two registries on one database never both hold a job, and neither
undoes what the other counted.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from deployments.messages import JobKind, Stage
from serve_app.database.access import record_usage
from serve_app.database.jobs.rows import changed_columns, lock_job, read_job
from serve_app.database.jobs.totals import count_end
from serve_app.database.jobs.webhooks import add_delivery
from serve_app.database.schema import job_moves, jobs
from serve_app.jobs import NOTHING_EXPIRES, Expiry, Job, JobState, Move, Usage, check_move, first_move, overall_progress

NO_USAGE = Usage()
NO_LEASE: Mapping[str, None] = {"lease": None, "lease_owner": None, "lease_expires_at": None}


def move(connection: Connection, job: Job, state: JobState, now: float, note: str, **changes: Any) -> Job:
    """Write the state and other changed fields of a job that this transaction has locked, and its history."""
    check_move(job.state, state)
    changes |= {"state": state, "moves": job.moves + 1}
    moved = replace(job, **changes)
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(**changed_columns(changes)))
    move = Move(now, moved.state, moved.stage, moved.attempt, note)
    connection.execute(insert(job_moves).values(job_id=job.id, **asdict(move)))
    if moved.final:
        add_delivery(connection, moved, now=now)
        videos = int(moved.kind is JobKind.VIDEO)
        record_usage(connection, moved.tenant, ended_at=now, gpu_seconds=moved.device_s, videos=videos)
        count_end(connection, moved)
    return replace(moved, last_move=move)


def lock_leased(connection: Connection, job_id: str, lease: str) -> Job | None:
    """As `lock_job`; None also if the lease is no longer this one."""
    job = lock_job(connection, job_id)
    return job if job is not None and job.lease == lease else None


def step_fields(job: Job, step: int) -> dict[str, Any]:
    return {"step": step, "progress": overall_progress(job.stage, step, job.spec.steps)}


def usage_fields(job: Job, used: Usage) -> dict[str, Any]:
    return {"steps_run": job.steps_run + used.steps, "device_s": job.device_s + used.device_s}


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
    return [first_move(job.created_at, job.kind), *moves]
