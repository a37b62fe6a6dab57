"""Every query on jobs: plain functions of a connection, the same for SQLite and Postgres.

A job moves only through `_move`, which checks the table of allowed moves and writes the history in the same
transaction. A claim is one conditional UPDATE, so that two registries on one database never hold the same job.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, Select, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from deployments.messages import Stage, VideoSpec
from serve_app.errors import UnknownJobError
from serve_app.jobs import NEXT_STAGE, RUNNING, Job, JobError, JobPage, JobState, check_move, overall_progress
from serve_app.schema import job_moves, jobs

Order = Literal["asc", "desc"]

NO_LEASE: dict[str, Any] = {"lease": None, "lease_owner": None, "lease_expires_at": None}


def insert_job(connection: Connection, job_id: str, model: str, spec: VideoSpec, now: float) -> Job:
    """Write a new queued job; an id that is known already gives the job as it is."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = {
        "id": job_id,
        "model": model,
        "spec": asdict(spec),
        "state": JobState.QUEUED,
        "stage": Stage.ENCODING,
        "attempt": 1,
        "step": 0,
        "progress": 0.0,
        "created_at": now,
        "available_at": now,
        "seconds": {},
    }
    written = dialect.insert(jobs).values(row).on_conflict_do_nothing().returning(jobs.c.id)
    inserted = connection.execute(written).scalar_one_or_none()
    job = get_job(connection, job_id)
    assert job is not None
    if inserted is not None:
        _write_history(connection, job, now, "accepted")
    return job


def get_job(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
    return None if row is None else _job(row)


def list_jobs(connection: Connection, limit: int, after: str | None = None, order: Order = "desc") -> JobPage:
    """A page of jobs by time of creation, beginning behind the job `after`.

    Raises:
        UnknownJobError: there is no job `after`.
    """
    key = tuple_(jobs.c.created_at, jobs.c.id)
    query = select(jobs)
    if after is not None:
        cursor = get_job(connection, after)
        if cursor is None:
            raise UnknownJobError(after)
        position = tuple_(cursor.created_at, cursor.id)
        query = query.where(key < position if order == "desc" else key > position)
    columns = (jobs.c.created_at, jobs.c.id)
    query = query.order_by(*(c.desc() if order == "desc" else c.asc() for c in columns))
    found = _jobs(connection, query.limit(limit + 1))
    return JobPage(jobs=tuple(found[:limit]), has_more=len(found) > limit)


def claim(connection: Connection, stage: Stage, leases: list[str], owner: str, now: float, lease_s: float) -> list[Job]:
    """Give the longest-waiting jobs of `stage`, one for each of `leases`, to `owner`."""
    waiting = (
        select(jobs)
        .where(jobs.c.state == JobState.QUEUED, jobs.c.stage == stage, jobs.c.available_at <= now)
        .order_by(jobs.c.created_at, jobs.c.id)
        .limit(len(leases))
    )
    if connection.dialect.name == "postgresql":
        waiting = waiting.with_for_update(skip_locked=True)
    claimed = []
    for job, lease in zip(_jobs(connection, waiting), leases, strict=False):
        held = {"lease": lease, "lease_owner": owner, "lease_expires_at": now + lease_s}
        first = {} if job.started_at is not None else {"started_at": now}
        moved = _move(connection, job, JobState(stage), now, "claimed", **held, **first)
        if moved is not None:
            claimed.append(moved)
    return claimed


def renew(
    connection: Connection, job_id: str, lease: str, expires_at: float, step: int, progress: float, steps_run: int
) -> bool:
    """Extend the lease, keep the progress and count `steps_run` more; False if the lease is no longer this one."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease == lease)
    counted = jobs.c.steps_run + steps_run
    values = {"lease_expires_at": expires_at, "step": step, "progress": progress, "steps_run": counted}
    return bool(connection.execute(query.values(**values)).rowcount)


def keep_checkpoint(connection: Connection, job_id: str, lease: str, step: int) -> bool:
    """A new attempt may begin at `step`; False if the lease is no longer this one."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease == lease)
    return bool(connection.execute(query.values(checkpoint_step=step)).rowcount)


def finish_stage(
    connection: Connection, job_id: str, lease: str, seconds: dict[str, float], now: float, steps_run: int = 0
) -> Job | None:
    """The stage's output is in storage: on to the next stage, or completed. None if the lease is not this one."""
    job = _held(connection, job_id, lease)
    if job is None:
        return None
    spent = {
        "seconds": {**job.seconds, **{f"{job.stage}.{part}": s for part, s in seconds.items()}},
        "steps_run": job.steps_run + steps_run,
    }
    following = NEXT_STAGE[job.stage]
    if following is None:
        done = {"completed_at": now, "progress": 1.0, **spent}
        return _move(connection, job, JobState.COMPLETED, now, "done", **NO_LEASE, **done)
    step = job.spec.num_inference_steps if job.stage is Stage.SAMPLING else job.step
    onward = {
        "stage": following,
        "available_at": now,
        "step": step,
        "progress": overall_progress(following, 0, 1),
    }
    return _move(connection, job, JobState.QUEUED, now, f"{job.stage} done", **NO_LEASE, **onward, **spent)


def give_back(connection: Connection, job_id: str, lease: str, now: float, note: str) -> Job | None:
    """Undo a claim that never reached a replica; costs no attempt."""
    job = _held(connection, job_id, lease)
    if job is None:
        return None
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, available_at=now)


def park(
    connection: Connection, job_id: str, lease: str, now: float, step: int, steps_run: int, note: str
) -> Job | None:
    """Back to the queue with all `step` steps kept; costs no attempt."""
    job = _held(connection, job_id, lease)
    if job is None:
        return None
    kept = {"step": step, "checkpoint_step": step, "steps_run": job.steps_run + steps_run, "available_at": now}
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **kept)


def retry(
    connection: Connection,
    job_id: str,
    lease: str,
    now: float,
    available_at: float,
    note: str,
    attempt: int,
    steps_run: int = 0,
) -> Job | None:
    """Back to the queue of the same stage, as `attempt` from the last checkpoint, not before `available_at`."""
    job = _held(connection, job_id, lease)
    if job is None:
        return None
    again = {"attempt": attempt, "available_at": available_at, "steps_run": job.steps_run + steps_run}
    if job.stage is Stage.SAMPLING:
        again["step"] = job.checkpoint_step
    return _move(connection, job, JobState.QUEUED, now, note, **NO_LEASE, **again)


def cancel(connection: Connection, job_id: str, now: float) -> Job | None:
    """End a job that is not final, whoever holds it; None if it is unknown. A final one stays as it is."""
    job = get_job(connection, job_id)
    if job is None or job.final:
        return job
    why = {"error_code": "cancelled", "error_message": "the job was cancelled", "completed_at": now}
    moved = _move(connection, job, JobState.CANCELLED, now, "cancelled", **NO_LEASE, **why)
    # Another registry moved it between the two statements: look again, it can do so only a few times.
    return moved or cancel(connection, job_id, now)


def fail(connection: Connection, job_id: str, lease: str, now: float, error: JobError) -> Job | None:
    """End the job as failed. None if the lease is not this one."""
    job = _held(connection, job_id, lease)
    if job is None:
        return None
    why = {"error_code": error.code, "error_message": error.message, "completed_at": now}
    return _move(connection, job, JobState.FAILED, now, error.code, **NO_LEASE, **why)


def leased_jobs(connection: Connection) -> list[Job]:
    """Every job that a replica holds, or held when its registry died."""
    return _jobs(connection, select(jobs).where(jobs.c.state.in_(RUNNING)))


def foreign_lapsed_jobs(connection: Connection, owner: str, now: float) -> list[Job]:
    """Jobs that another registry held and did not renew in time."""
    query = select(jobs).where(
        jobs.c.lease_expires_at < now, or_(jobs.c.lease_owner != owner, jobs.c.lease_owner.is_(None))
    )
    return _jobs(connection, query)


def count_live(connection: Connection) -> dict[tuple[JobState, Stage], int]:
    """How many jobs are in each live state and stage."""
    live = [JobState.QUEUED, *RUNNING]
    query = select(jobs.c.state, jobs.c.stage, func.count()).where(jobs.c.state.in_(live))
    rows = connection.execute(query.group_by(jobs.c.state, jobs.c.stage))
    return {(JobState(state), Stage(stage)): count for state, stage, count in rows}


def next_available_at(connection: Connection) -> float | None:
    """When the next queued job may be claimed, Unix seconds; None if nothing waits."""
    query = select(func.min(jobs.c.available_at)).where(jobs.c.state == JobState.QUEUED)
    found: float | None = connection.execute(query).scalar_one()
    return found


def history(connection: Connection, job_id: str) -> list[tuple[float, str, str]]:
    """The job's moves in order: time, state, note."""
    query = select(job_moves.c.at, job_moves.c.state, job_moves.c.note).where(job_moves.c.job_id == job_id)
    return [(at, state, note) for at, state, note in connection.execute(query.order_by(job_moves.c.id))]


def _move(connection: Connection, job: Job, state: JobState, now: float, note: str, **values: Any) -> Job | None:
    check_move(job.state, state)
    query = update(jobs).where(jobs.c.id == job.id, jobs.c.state == job.state)
    query = query.where(jobs.c.lease.is_(None) if job.lease is None else jobs.c.lease == job.lease)
    if not connection.execute(query.values(state=state, **values)).rowcount:
        return None
    moved = get_job(connection, job.id)
    assert moved is not None
    _write_history(connection, moved, now, note)
    return moved


def _held(connection: Connection, job_id: str, lease: str) -> Job | None:
    job = get_job(connection, job_id)
    return job if job is not None and job.lease == lease else None


def _write_history(connection: Connection, job: Job, now: float, note: str) -> None:
    row = {"job_id": job.id, "at": now, "state": job.state, "stage": job.stage, "attempt": job.attempt}
    connection.execute(insert(job_moves).values(row | {"note": note}))


def _jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    rows: Iterable[RowMapping] = connection.execute(query).mappings()
    return [_job(row) for row in rows]


def _job(row: RowMapping) -> Job:
    values = dict(row)
    code, message = values.pop("error_code"), values.pop("error_message")
    values["error"] = None if code is None else JobError(code, message)
    values["spec"] = VideoSpec(**values["spec"])
    return Job(**values | {"state": JobState(values["state"]), "stage": Stage(values["stage"])})
