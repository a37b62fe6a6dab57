"""How a job becomes durable: with its idempotency key, in one transaction, and without a look at what was written."""

from sqlalchemy import Connection

from deployments.messages import Stage
from serve_app.database.idempotency import holder, reserve
from serve_app.database.job_rows import get_job, new_row
from serve_app.database.schema import jobs
from serve_app.database.upserts import insert_into
from serve_app.jobs import Accepted, Job, JobState, Submission, acceptance


def insert_job(connection: Connection, submission: Submission, now: float, keep_keys_s: float) -> Accepted:
    """Write a new queued job; an id or an idempotency key that is known already gives the job as it is.

    Args:
        now: Unix seconds. keep_keys_s: how long an idempotency key stands for its job.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request; nothing was written.
    """
    known = reserve(connection, submission, now, keep_keys_s)
    if known is not None:
        return Accepted(known, repeated=True)
    job = _new_job(submission, now)
    query = insert_into(connection, jobs).on_conflict_do_nothing().returning(jobs.c.id)
    if connection.execute(query, new_row(job)).first() is not None:
        return Accepted(job, repeated=False)
    known = get_job(connection, job.id)
    assert known is not None
    return Accepted(known, repeated=True)


def find_accepted(connection: Connection, submission: Submission, now: float, keep_keys_s: float) -> Accepted | None:
    """The job that `insert_job` would find there already; None if it would write a new one. Raises as it does."""
    known = holder(connection, submission, now, keep_keys_s) or get_job(connection, submission.job_id)
    return None if known is None else Accepted(known, repeated=True)


def _new_job(submission: Submission, now: float) -> Job:
    return Job(
        id=submission.job_id,
        model=submission.model,
        spec=submission.spec,
        state=JobState.QUEUED,
        stage=Stage.ENCODING,
        attempt=1,
        created_at=now,
        available_at=now,
        tenant=submission.tenant,
        tier=submission.tier,
        origin=submission.origin,
        webhook_url=submission.webhook_url,
        last_move=acceptance(now),
    )
