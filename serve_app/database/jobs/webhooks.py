"""Webhook deliveries in SQL: which are due, and what became of them. Functions of a connection.

A delivery is written in the transaction that ends its job (a transactional outbox), so none is
lost. Whoever sends it holds it for that time: its `next_at` lies a little ahead, so that another
registry sends it if the holder dies. A delivery is therefore sent once or more often, always under
the same id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from serve_app.database.engine import insert_into
from serve_app.database.jobs.rows import batches
from serve_app.database.schema import UNDELIVERED
from serve_app.database.schema import webhook_deliveries as deliveries
from serve_app.jobs import Job, JobState
from serve_app.scheduling.webhook_pacing import DeliveryLimits

TYPES = {
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one URL. Times are Unix seconds."""

    id: str  # evt_..., the same in all tries
    job_id: str
    tenant: str
    url: str
    type: str  # of the event: video.completed, proteins.failed and the like
    created_at: float  # when the job ended
    attempts: int  # tries that have ended
    next_at: float | None  # when the next try is due; None once it was taken or given up
    delivered_at: float | None
    status: int | None  # of the answer to the last try; None if there was no answer
    error: str | None  # of the last try; kept after it was given up
    traceparent: str | None = None  # as in Job


_DELIVERY = select(*(deliveries.c[field.name] for field in fields(Delivery)))


def add_delivery(connection: Connection, job: Job, *, now: float) -> None:
    """Send the job's end to its URL, from `now` on. Writes nothing for a job without a URL or that is not final.

    The id is made from the job's, so that a delivery that is written twice is one.
    """
    if job.webhook_url is None or not job.final:
        return
    row = {
        "id": f"evt_{job.id.removeprefix('video_')}",
        "job_id": job.id,
        "tenant": job.tenant,
        "url": job.webhook_url,
        "type": f"{job.kind}.{TYPES[job.state]}",
        "created_at": now,
        "next_at": now,
        "traceparent": job.traceparent,
    }
    connection.execute(insert_into(connection, deliveries).on_conflict_do_nothing(), row)


def hold_due(connection: Connection, *, now: float, hold_s: float, limits: DeliveryLimits) -> list[Delivery]:
    """Hold, until `now + hold_s`, the deliveries that are due and within the limits; longest due first.

    Deliveries that another registry holds at this moment are passed over, not waited for. `limits`
    stays as it is.
    """
    limits = limits.copy()
    held: list[Delivery] = []
    while limits.free > 0:
        due = _DELIVERY.where(UNDELIVERED, deliveries.c.next_at <= now, *_within(limits))
        first = due.order_by(deliveries.c.next_at, deliveries.c.id).limit(limits.free)
        found = [Delivery(*row) for row in connection.execute(first.with_for_update(skip_locked=True))]
        allowed = [delivery for delivery in found if limits.begin(delivery.tenant, delivery.url)]
        if not allowed:
            break
        ids = [delivery.id for delivery in allowed]
        connection.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(next_at=now + hold_s))
        held += [replace(delivery, next_at=now + hold_s) for delivery in allowed]
    return held


def next_due_at(connection: Connection, *, limits: DeliveryLimits) -> float | None:
    """When the first delivery within the limits is due, Unix seconds; None if there is none."""
    query = select(func.min(deliveries.c.next_at)).where(UNDELIVERED, *_within(limits))
    found: float | None = connection.execute(query).scalar_one()
    return found


def read_backlog(connection: Connection, *, now: float) -> tuple[int, float]:
    """How many are neither taken nor given up, and for how many seconds the first of them is due; 0 if none is."""
    query = select(func.count(), func.min(deliveries.c.next_at)).where(UNDELIVERED)
    count, due_at = connection.execute(query).one()
    return count, 0.0 if due_at is None else max(0.0, now - due_at)


def mark_delivered(connection: Connection, delivery: Delivery, *, now: float, status: int | None) -> None:
    """The receiver took it, whoever holds it by now."""
    query = update(deliveries).where(deliveries.c.id == delivery.id, deliveries.c.delivered_at.is_(None))
    done = {"delivered_at": now, "next_at": None, "status": status, "error": None}
    connection.execute(query.values(attempts=deliveries.c.attempts + 1, **done))


def mark_failed(
    connection: Connection, delivery: Delivery, *, next_at: float | None, status: int | None, error: str
) -> Delivery | None:
    """A try failed.

    Args:
        delivery: as it was when it was held.
        next_at: when to try again, Unix seconds; None: it is given up.
        status: of the answer; None if there was no answer.
        error: what was wrong.

    Returns:
        The delivery as it is now; None if another registry holds it since, or it is deleted:
        nothing is written.
    """
    values = {"attempts": delivery.attempts + 1, "next_at": next_at, "status": status, "error": error}
    query = update(deliveries).where(deliveries.c.id == delivery.id, deliveries.c.next_at == delivery.next_at)
    if not connection.execute(query.values(**values)).rowcount:
        return None
    return replace(delivery, attempts=delivery.attempts + 1, next_at=next_at, status=status, error=error)


def delete_deliveries(connection: Connection, job_ids: Sequence[str]) -> None:
    """Delete the deliveries of these jobs, also those that were not sent yet."""
    for batch in batches(job_ids):
        connection.execute(delete(deliveries).where(deliveries.c.job_id.in_(batch)))


def forget_old_deliveries(connection: Connection, *, before: float, limit: int) -> int:
    """Delete up to `limit` that were taken or given up and whose jobs ended before that time; returns how many."""
    done = select(deliveries.c.id).where(deliveries.c.next_at.is_(None), deliveries.c.created_at < before)
    return connection.execute(delete(deliveries).where(deliveries.c.id.in_(done.limit(limit)))).rowcount


def _within(limits: DeliveryLimits) -> list[ColumnElement[bool]]:
    """Conditions that leave out deliveries whose tenant or origin is at its limit."""
    conditions: list[ColumnElement[bool]] = []
    if limits.full_tenants:
        conditions.append(deliveries.c.tenant.not_in(limits.full_tenants))
    for origin in limits.full_origins:
        # With the next character, or the origin https://a.com would match https://a.com.au as well.
        start = func.substr(deliveries.c.url, 1, len(origin) + 1)
        conditions.append(start.not_in([origin, f"{origin}/", f"{origin}?"]))
    return conditions
