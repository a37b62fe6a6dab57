"""What a registry asks of the jobs as a whole: those that wait, those that are held, what they did."""

from sqlalchemy import Connection, func, select

from deployments.messages import Stage
from serve_app.database.job_rows import JOB, find_jobs, get_job
from serve_app.database.schema import ENDED, LEASED, WAITING, job_moves, jobs
from serve_app.jobs import Job, JobState, Move, acceptance


def queued_ids(connection: Connection) -> list[tuple[str, Stage]]:
    """Every waiting job and what it waits for, from an index alone."""
    rows = connection.execute(select(jobs.c.id, jobs.c.stage).where(WAITING).order_by(jobs.c.stage, jobs.c.id))
    return [(job_id, Stage(stage)) for job_id, stage in rows]


def leased_jobs(connection: Connection) -> list[Job]:
    """Every job that a replica holds, or held when its registry died."""
    return find_jobs(connection, JOB.where(LEASED).order_by(jobs.c.id))


def count_live(connection: Connection) -> dict[tuple[JobState, Stage], int]:
    """How many jobs are in each live state and stage."""
    counted = select(jobs.c.state, jobs.c.stage, func.count()).group_by(jobs.c.state, jobs.c.stage)
    rows = [row for live in (WAITING, LEASED) for row in connection.execute(counted.where(live))]
    return {(JobState(state), Stage(stage)): count for state, stage, count in rows}


def history(connection: Connection, job_id: str) -> list[Move]:
    """The job's moves in order, beginning with its acceptance; empty if it is unknown."""
    job = get_job(connection, job_id)
    if job is None:
        return []
    columns = (job_moves.c.at, job_moves.c.state, job_moves.c.stage, job_moves.c.attempt, job_moves.c.note)
    query = select(*columns).where(job_moves.c.job_id == job_id).order_by(job_moves.c.id)
    moves = [
        Move(at, JobState(state), Stage(stage), attempt, note)
        for at, state, stage, attempt, note in connection.execute(query)
    ]
    return [acceptance(job.created_at), *moves]


def recent_work(connection: Connection, limit: int) -> list[Job]:
    """The jobs completed last, newest first: what work costs can be learned from them."""
    done = JOB.where(jobs.c.state == JobState.COMPLETED, ENDED)
    newest = (jobs.c.completed_at.desc(), jobs.c.id.desc())
    return find_jobs(connection, done.order_by(*newest).limit(limit))
