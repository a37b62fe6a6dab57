"""The few facts about the database itself."""

from uuid import uuid4

from sqlalchemy import Connection, select

from serve_app.schema import meta
from serve_app.upserts import insert_into


def installation_id(connection: Connection) -> str:
    """The name of this database, drawn once: what is in storage under another one belongs to others."""
    row = {"name": "installation_id", "value": uuid4().hex}
    connection.execute(insert_into(connection, meta).on_conflict_do_nothing(), row)
    found: str = connection.execute(select(meta.c.value).where(meta.c.name == "installation_id")).scalar_one()
    return found


def touch(connection: Connection, now: float) -> None:
    """One small durable write: it raises if the database cannot be written."""
    row = {"name": "touched_at", "value": repr(now)}
    query = insert_into(connection, meta).on_conflict_do_update(
        index_elements=[meta.c.name], set_={"value": row["value"]}
    )
    connection.execute(query, row)
