"""How a job becomes durable: in one transaction with its idempotency key.

An idempotency key is a client's own name for a request: the same request sent again gives the same
job. A key belongs to one tenant and is forgotten after a while.
"""

from sqlalchemy import Connection, delete, or_, select

from serve_app.database.engine import insert_into
from serve_app.database.jobs.rows import JOB, get_job, is_kept, job_from_row, new_row
from serve_app.database.jobs.totals import count_accepted
from serve_app.database.schema import idempotency_keys as keys
from serve_app.database.schema import jobs
from serve_app.errors import IdempotencyKeyReusedError
from serve_app.jobs import NOTHING_EXPIRES, Acceptance, Expiry, Job, Submission

_JOB_OF_KEY = JOB.add_columns(keys.c.fingerprint, keys.c.sent_fingerprint).join_from(
    keys, jobs, jobs.c.id == keys.c.job_id
)


def insert_job(
    connection: Connection,
    submission: Submission,
    *,
    now: float,
    keep_keys_s: float,
    expiry: Expiry = NOTHING_EXPIRES,
) -> Acceptance:
    """Write a new queued job; if its id or its idempotency key is there already, the job that has it is returned.

    Args:
        now: Unix seconds.
        keep_keys_s: how long an idempotency key stands for its job.
        expiry: which jobs have expired; no key stands for one of them.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request; nothing was written.
    """
    earlier = _reserve_key(connection, submission, now=now, keep_keys_s=keep_keys_s, expiry=expiry)
    if earlier is not None:
        return Acceptance(earlier, repeated=True)
    job = submission.accepted(now)
    query = insert_into(connection, jobs).on_conflict_do_nothing().returning(jobs.c.id)
    if connection.execute(query, new_row(job)).first() is not None:
        count_accepted(connection, job)
        return Acceptance(job, repeated=False)
    earlier = get_job(connection, job.id)
    assert earlier is not None
    return Acceptance(earlier, repeated=True)


def find_accepted(
    connection: Connection, submission: Submission, *, now: float, keep_keys_s: float, expiry: Expiry = NOTHING_EXPIRES
) -> Acceptance | None:
    """The job that `insert_job` would find there already; None if it would write a new one. Raises as it does."""
    earlier = _find_by_key(connection, submission, now=now, keep_keys_s=keep_keys_s, expiry=expiry)
    earlier = earlier or get_job(connection, submission.job_id)
    return None if earlier is None else Acceptance(earlier, repeated=True)


def forget_old_keys(connection: Connection, *, before: float) -> int:
    """Forget the keys from before that time, Unix seconds; returns how many."""
    return connection.execute(delete(keys).where(keys.c.created_at < before)).rowcount


def _reserve_key(
    connection: Connection, submission: Submission, *, now: float, keep_keys_s: float, expiry: Expiry
) -> Job | None:
    """Give the key, if there is one, to the submission's job; returns the job that has it already instead.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request.
    """
    if submission.idempotency_key is None:
        return None
    while True:
        earlier = _find_by_key(connection, submission, now=now, keep_keys_s=keep_keys_s, expiry=expiry)
        # Another registry may write the key between the look and the write: the next look finds its
        # job.
        if earlier is not None or _write_key(connection, submission, now=now, keep_keys_s=keep_keys_s, expiry=expiry):
            return earlier


def _find_by_key(
    connection: Connection, submission: Submission, *, now: float, keep_keys_s: float, expiry: Expiry
) -> Job | None:
    """The job that the submission's key stands for; None if there is no key or it is free.

    Raises:
        IdempotencyKeyReusedError: the key stands for another request.
    """
    if submission.idempotency_key is None:
        return None
    query = _JOB_OF_KEY.where(
        keys.c.tenant == submission.tenant,
        keys.c.key == submission.idempotency_key,
        keys.c.created_at > now - keep_keys_s,
        is_kept(expiry),
    )
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    values = dict(row)
    if not submission.repeats(values.pop("fingerprint"), values.pop("sent_fingerprint")):
        raise IdempotencyKeyReusedError(submission.idempotency_key)
    return job_from_row(values)


def _write_key(
    connection: Connection, submission: Submission, *, now: float, keep_keys_s: float, expiry: Expiry
) -> bool:
    """False, and nothing is written, if the key is there.

    A key that is too old or has lost its job is deleted first. That is a statement of its own: it
    sees a key of another registry only together with the job of that key.
    """
    has_no_job = ~select(jobs.c.id).where(jobs.c.id == keys.c.job_id, is_kept(expiry)).exists()
    is_this = (keys.c.tenant == submission.tenant, keys.c.key == submission.idempotency_key)
    connection.execute(delete(keys).where(*is_this, or_(keys.c.created_at <= now - keep_keys_s, has_no_job)))
    row = {
        "tenant": submission.tenant,
        "key": submission.idempotency_key,
        "fingerprint": submission.fingerprint,
        "sent_fingerprint": submission.sent_fingerprint,
        "job_id": submission.job_id,
        "created_at": now,
    }
    query = insert_into(connection, keys).on_conflict_do_nothing().returning(keys.c.job_id)
    return connection.execute(query, row).first() is not None
