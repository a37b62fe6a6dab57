"""Idempotency keys: a client's own name for a request, so that sending it again gives the same job.

A key belongs to one tenant and is forgotten after a while. It is written in the transaction that writes its job.
"""

from sqlalchemy import Connection, delete, or_, select

from serve_app.database.job_rows import JOB, job_of
from serve_app.database.schema import idempotency_keys as keys
from serve_app.database.schema import jobs
from serve_app.database.upserts import insert_into
from serve_app.errors import IdempotencyKeyReusedError
from serve_app.jobs import Job, Submission

_HOLDER = JOB.add_columns(keys.c.fingerprint).join_from(keys, jobs, jobs.c.id == keys.c.job_id)
_JOBLESS = ~select(jobs.c.id).where(jobs.c.id == keys.c.job_id).exists()


def holder(connection: Connection, submission: Submission, now: float, keep_keys_s: float) -> Job | None:
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


def reserve(connection: Connection, submission: Submission, now: float, keep_keys_s: float) -> Job | None:
    """Give the key to the submission's job; what has it already is returned instead. Raises as `holder` does."""
    while submission.idempotency_key is not None:
        known = holder(connection, submission, now, keep_keys_s)
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


def forget_old_keys(connection: Connection, before: float) -> int:
    """Forget the keys from before that time, Unix seconds; returns how many."""
    return connection.execute(delete(keys).where(keys.c.created_at < before)).rowcount
