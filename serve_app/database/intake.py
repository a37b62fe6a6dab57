"""How a job becomes durable: with its idempotency key, in one transaction, and without a look at what was written.

Idempotency keys: a client's own name for a request, so that sending it again gives the same job.

A key belongs to one tenant and is forgotten after a while. It is written in the transaction that writes its job.
"""

from sqlalchemy import Connection, delete, or_, select

from deployments.messages import Stage
from serve_app.database.engine import insert_into
from serve_app.database.job_rows import JOB, get_job, job_of, new_row
from serve_app.database.schema import idempotency_keys as keys
from serve_app.database.schema import jobs
from serve_app.errors import IdempotencyKeyReusedError
from serve_app.jobs import Acceptance, Job, JobState, Submission, first_move


def insert_job(connection: Connection, submission: Submission, *, now: float, keep_keys_s: float) -> Acceptance:
    """Write a new queued job; an id or an idempotency key that is known already gives the job as it is.

    Args:
        now: Unix seconds. keep_keys_s: how long an idempotency key stands for its job.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request; nothing was written.
    """
    known = reserve(connection, submission, now=now, keep_keys_s=keep_keys_s)
    if known is not None:
        return Acceptance(known, repeated=True)
    job = _new_job(submission, now)
    query = insert_into(connection, jobs).on_conflict_do_nothing().returning(jobs.c.id)
    if connection.execute(query, new_row(job)).first() is not None:
        return Acceptance(job, repeated=False)
    known = get_job(connection, job.id)
    assert known is not None
    return Acceptance(known, repeated=True)


def find_accepted(
    connection: Connection, submission: Submission, *, now: float, keep_keys_s: float
) -> Acceptance | None:
    """The job that `insert_job` would find there already; None if it would write a new one. Raises as it does."""
    known = holder(connection, submission, now=now, keep_keys_s=keep_keys_s) or get_job(connection, submission.job_id)
    return None if known is None else Acceptance(known, repeated=True)


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
        last_move=first_move(now),
    )


_HOLDER = JOB.add_columns(keys.c.fingerprint).join_from(keys, jobs, jobs.c.id == keys.c.job_id)
_JOBLESS = ~select(jobs.c.id).where(jobs.c.id == keys.c.job_id).exists()


def holder(connection: Connection, submission: Submission, *, now: float, keep_keys_s: float) -> Job | None:
    """The job that the submission's key stands for, None if it is free.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request.
    """
    if submission.idempotency_key is None:
        return None
    query = _HOLDER.where(
        keys.c.tenant == submission.tenant,
        keys.c.key == submission.idempotency_key,
        keys.c.created_at > now - keep_keys_s,
    )
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    values = dict(row)
    if values.pop("fingerprint") != submission.fingerprint:
        raise IdempotencyKeyReusedError(submission.idempotency_key)
    return job_of(values)


def reserve(connection: Connection, submission: Submission, *, now: float, keep_keys_s: float) -> Job | None:
    """Give the key to the submission's job; what has it already is returned instead. Raises as `holder` does."""
    while submission.idempotency_key is not None:
        known = holder(connection, submission, now=now, keep_keys_s=keep_keys_s)
        if known is not None:
            return known
        # Another registry may have written the key since: then nothing is written here, and the next look finds it.
        if _write(connection, submission, now, keep_keys_s):
            return None
    return None


def _write(connection: Connection, submission: Submission, now: float, keep_keys_s: float) -> bool:
    """False if it is there. One that has had its time, or lost its job, goes first: in a statement of its own, which
    sees a key of another registry only together with its job."""
    named = (keys.c.tenant == submission.tenant, keys.c.key == submission.idempotency_key)
    connection.execute(delete(keys).where(*named, or_(keys.c.created_at <= now - keep_keys_s, _JOBLESS)))
    row = {
        "tenant": submission.tenant,
        "key": submission.idempotency_key,
        "fingerprint": submission.fingerprint,
        "job_id": submission.job_id,
        "created_at": now,
    }
    query = insert_into(connection, keys).on_conflict_do_nothing().returning(keys.c.job_id)
    return connection.execute(query, row).first() is not None


def forget_old_keys(connection: Connection, *, before: float) -> int:
    """Forget the keys from before that time, Unix seconds; returns how many."""
    return connection.execute(delete(keys).where(keys.c.created_at < before)).rowcount
