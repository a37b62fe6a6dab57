"""The few facts about the database itself."""

from uuid import uuid4

from sqlalchemy import Connection, delete, select

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


_BEAT = "registry:"


def beat(connection: Connection, owner: str, now: float) -> None:
    """The registry of `owner` works on this database at `now`, Unix seconds."""
    row = {"name": f"{_BEAT}{owner}"[:64], "value": repr(now)}
    query = insert_into(connection, meta).on_conflict_do_update(
        index_elements=[meta.c.name], set_={"value": row["value"]}
    )
    connection.execute(query, row)


def other_registries(connection: Connection, owner: str, since: float) -> list[str]:
    """The owners of the other registries that have said so since; what is older is forgotten."""
    found = connection.execute(select(meta.c.name, meta.c.value).where(meta.c.name.startswith(_BEAT)))
    others = {name: float(value) for name, value in found if name != f"{_BEAT}{owner}"[:64]}
    silent = [name for name, at in others.items() if at < since]
    connection.execute(delete(meta).where(meta.c.name.in_(silent)))
    return sorted(name.removeprefix(_BEAT) for name in others.keys() - set(silent))
