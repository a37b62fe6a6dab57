"""Webhook deliveries as they lie in the database."""

from dataclasses import fields

from sqlalchemy import Connection, select

from serve_app.database.connection import Database
from serve_app.database.jobs.webhooks import Delivery
from serve_app.database.schema import webhook_deliveries


def select_deliveries(connection: Connection, job_id: str) -> list[Delivery]:
    """All of a job."""
    columns = (webhook_deliveries.c[field.name] for field in fields(Delivery))
    rows = connection.execute(select(*columns).where(webhook_deliveries.c.job_id == job_id))
    return [Delivery(*row) for row in rows]


async def get_delivery(database: Database, job_id: str) -> Delivery:
    """The only one of the job `video_<job_id>`."""
    (delivery,) = await database.run(select_deliveries, f"video_{job_id}")
    return delivery
