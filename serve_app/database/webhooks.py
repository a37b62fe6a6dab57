"""What is to be told by webhook, and what became of it: functions of a connection, as in `jobs_sql`.

A delivery is written in the transaction that ends its job (a transactional outbox), so none is lost. It is held while
it is sent: its `next_at` lies a little ahead, and whoever dies with it gives it up by that. So it is sent once or more
often, under the same id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from serve_app.database.engine import insert_into
from serve_app.database.job_rows import batches
from serve_app.database.schema import UNDELIVERED
from serve_app.database.schema import webhook_deliveries as deliveries
from serve_app.jobs import Job, JobState
from serve_app.scheduling.webhook_pacing import DeliveryLimits

TYPES = {
    JobState.COMPLETED: "video.completed",
    JobState.FAILED: "video.failed",
    JobState.CANCELLED: "video.cancelled",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one URL. Times are Unix seconds.

    id: `evt_...`, the same in all tries. type: `video.completed` and the like. created_at: when the job ended.
    attempts: tries that have ended. next_at: when the next one is due, None once it was taken or given up.
    status, error: of the last try; what was wrong is kept after it was given up.
    """

    id: str
    job_id: str
    tenant: str
    url: str
    type: str
    created_at: float
    attempts: int
    next_at: float | None
    delivered_at: float | None
    status: int | None
    error: str | None


_DELIVERY = select(*(deliveries.c[name] for name in Delivery.__dataclass_fields__))


def add_delivery(connection: Connection, job: Job, *, now: float) -> None:
    """Tell the job's end to its URL, from `now` on; nothing without one, or while the job is not final.

    Its id is made from the job's: written twice, it is one.
    """
    if job.webhook_url is None or not job.final:
        return
    row = {
        "id": f"evt_{job.id.removeprefix('video_')}",
        "job_id": job.id,
        "tenant": job.tenant,
        "url": job.webhook_url,
        "type": TYPES[job.state],
        "created_at": now,
        "next_at": now,
    }
    connection.execute(insert_into(connection, deliveries).on_conflict_do_nothing(), row)


def claim_due(connection: Connection, *, now: float, hold_s: float, lanes: DeliveryLimits) -> list[Delivery]:
    """Hold, until `now + hold_s`, those that are due and that `lanes` has room for; longest due first.

    What another registry claims at this moment is passed over, not waited for. `lanes` stays as it is.
    """
    lanes = lanes.copy()
    claimed: list[Delivery] = []
    while lanes.free > 0:
        due = _DELIVERY.where(UNDELIVERED, deliveries.c.next_at <= now, *_open(lanes))
        first = due.order_by(deliveries.c.next_at, deliveries.c.id).limit(lanes.free)
        found = [Delivery(*row) for row in connection.execute(first.with_for_update(skip_locked=True))]
        taken = [delivery for delivery in found if lanes.enter(delivery.tenant, delivery.url)]
        if not taken:
            break
        _hold(connection, [delivery.id for delivery in taken], now + hold_s)
        claimed += [replace(delivery, next_at=now + hold_s) for delivery in taken]
    return claimed


def _hold(connection: Connection, ids: Sequence[str], until: float) -> None:
    connection.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(next_at=until))


def _open(lanes: DeliveryLimits) -> list[ColumnElement[bool]]:
    """Only those whose tenant and origin may be sent to now."""
    conditions: list[ColumnElement[bool]] = []
    if lanes.full_tenants:
        conditions.append(deliveries.c.tenant.not_in(lanes.full_tenants))
    for origin in lanes.full_origins:
        begins = func.substr(deliveries.c.url, 1, len(origin) + 1)
        conditions.append(begins.not_in([origin, f"{origin}/", f"{origin}?"]))
    return conditions


def next_due_at(connection: Connection, *, lanes: DeliveryLimits) -> float | None:
    """When the first is due that `lanes` has room for, Unix seconds; None if there is none."""
    query = select(func.min(deliveries.c.next_at)).where(UNDELIVERED, *_open(lanes))
    found: float | None = connection.execute(query).scalar_one()
    return found


def delivered(connection: Connection, delivery: Delivery, *, now: float, status: int | None) -> None:
    """It was taken, whoever holds it by now."""
    untold = update(deliveries).where(deliveries.c.id == delivery.id, deliveries.c.delivered_at.is_(None))
    done = {"delivered_at": now, "next_at": None, "status": status, "error": None}
    connection.execute(untold.values(attempts=deliveries.c.attempts + 1, **done))


def failed(
    connection: Connection, delivery: Delivery, *, next_at: float | None, status: int | None, error: str
) -> Delivery | None:
    """A try did not succeed: again at `next_at`, or never if that is None.

    Args:
        delivery: as it was claimed. status: of the answer, None if there was none.

    Returns:
        None if it is held by another since, or gone: nothing is written.
    """
    values = {"attempts": delivery.attempts + 1, "next_at": next_at, "status": status, "error": error}
    held = update(deliveries).where(deliveries.c.id == delivery.id, deliveries.c.next_at == delivery.next_at)
    if not connection.execute(held.values(**values)).rowcount:
        return None
    return replace(delivery, attempts=delivery.attempts + 1, next_at=next_at, status=status, error=error)


def deliveries_of(connection: Connection, job_id: str) -> list[Delivery]:
    """What was or is to be told of the job, oldest first."""
    query = _DELIVERY.where(deliveries.c.job_id == job_id).order_by(deliveries.c.created_at, deliveries.c.id)
    return [Delivery(*row) for row in connection.execute(query)]


def forget_deliveries_of(connection: Connection, job_ids: Sequence[str]) -> None:
    """Forget what was told of these jobs, and tell nothing more of them."""
    for some in batches(job_ids):
        connection.execute(delete(deliveries).where(deliveries.c.job_id.in_(some)))


def forget_old_deliveries(connection: Connection, *, before: float, limit: int) -> int:
    """Forget up to `limit` that were taken or given up and whose jobs ended before that time; returns how many."""
    done = select(deliveries.c.id).where(deliveries.c.next_at.is_(None), deliveries.c.created_at < before)
    return connection.execute(delete(deliveries).where(deliveries.c.id.in_(done.limit(limit)))).rowcount
