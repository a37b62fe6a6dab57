"""The few facts about the database itself."""

from uuid import uuid4

from sqlalchemy import Connection, delete, select

from serve_app.database.engine import insert_into
from serve_app.database.schema import meta


def installation_id(connection: Connection) -> str:
    """The name of this database, drawn once: what is in storage under another one belongs to others."""
    row = {"name": "installation_id", "value": uuid4().hex}
    connection.execute(insert_into(connection, meta).on_conflict_do_nothing(), row)
    found: str = connection.execute(select(meta.c.value).where(meta.c.name == "installation_id")).scalar_one()
    return found


def touch(connection: Connection, *, now: float) -> None:
    """One small durable write: it raises if the database cannot be written."""
    row = {"name": "touched_at", "value": repr(now)}
    query = insert_into(connection, meta).on_conflict_do_update(
        index_elements=[meta.c.name], set_={"value": row["value"]}
    )
    connection.execute(query, row)


_BEAT = "registry:"


def write_heartbeat(connection: Connection, owner: str, *, now: float) -> None:
    """The registry of `owner` works on this database at `now`, Unix seconds."""
    row = {"name": _beat_name(owner), "value": repr(now)}
    query = insert_into(connection, meta).on_conflict_do_update(
        index_elements=[meta.c.name], set_={"value": row["value"]}
    )
    connection.execute(query, row)


def read_heartbeats(connection: Connection, owner: str, *, since: float) -> tuple[float | None, dict[str, float]]:
    """When the registry of `owner` said so last, and each other one by its owner, all by their own clocks.

    What is older than `since` is forgotten.
    """
    found = connection.execute(select(meta.c.name, meta.c.value).where(meta.c.name.startswith(_BEAT)))
    known = {name: float(value) for name, value in found}
    connection.execute(delete(meta).where(meta.c.name.in_([name for name, at in known.items() if at < since])))
    own = known.pop(_beat_name(owner), None)
    return own, {name.removeprefix(_BEAT): at for name, at in known.items() if at >= since}


def _beat_name(owner: str) -> str:
    return f"{_BEAT}{owner}"[:64]
