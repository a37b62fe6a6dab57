"""What a registry asks SQL of all jobs: which wait, which are held, what was done last. Functions of a connection."""

from sqlalchemy import Connection, func, select

from deployments.messages import Stage
from serve_app.database.jobs.rows import JOB, find_jobs
from serve_app.database.schema import ENDED, LEASED, WAITING, jobs
from serve_app.jobs import Job, JobState


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


def last_completed(connection: Connection, *, limit: int) -> list[Job]:
    """The jobs that were completed last, newest first: what work costs is learned from them."""
    done = JOB.where(jobs.c.state == JobState.COMPLETED, ENDED)
    newest = (jobs.c.completed_at.desc(), jobs.c.id.desc())
    return find_jobs(connection, done.order_by(*newest).limit(limit))
