"""Facts by name: the database's id, the registries on it, how long replicas take to start, how often jobs come."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from uuid import uuid4

from sqlalchemy import Connection, delete, select

from deployments.messages import VIDEO_STAGES, Stage
from serve_app.database.engine import insert_into
from serve_app.database.schema import meta
from serve_app.jobs import Tier
from serve_app.scheduling.scaling.headroom import TierArrivals

_HEARTBEAT = "registry:"
_START_TIME = "start_s:"
_ARRIVALS = "arrivals:"
_NAME_LENGTH = 64


def installation_id(connection: Connection) -> str:
    """The id of this database, drawn once: files in storage under another id belong to others."""
    row = {"name": "installation_id", "value": uuid4().hex}
    connection.execute(insert_into(connection, meta).on_conflict_do_nothing(), row)
    name: str = connection.execute(select(meta.c.value).where(meta.c.name == "installation_id")).scalar_one()
    return name


def touch(connection: Connection, *, now: float) -> None:
    """One small durable write: it raises if the database cannot be written."""
    _write(connection, "touched_at", repr(now))


def write_heartbeat(connection: Connection, owner: str, *, now: float) -> None:
    """The registry of `owner` works on this database at `now`, Unix seconds."""
    _write(connection, _heartbeat_name(owner), repr(now))


def read_heartbeats(connection: Connection, owner: str, *, since: float) -> tuple[float | None, dict[str, float]]:
    """The last heartbeat of the registry of `owner`, and those of the others by owner; all by their own clocks.

    Heartbeats older than `since` are deleted.
    """
    rows = connection.execute(select(meta.c.name, meta.c.value).where(meta.c.name.startswith(_HEARTBEAT)))
    heartbeats = {name: float(value) for name, value in rows}
    connection.execute(delete(meta).where(meta.c.name.in_([name for name, at in heartbeats.items() if at < since])))
    own = heartbeats.pop(_heartbeat_name(owner), None)
    return own, {name.removeprefix(_HEARTBEAT): at for name, at in heartbeats.items() if at >= since}


def write_start_times(connection: Connection, *, seconds: Mapping[Stage, float]) -> None:
    """How long replicas of these stages take to start."""
    for stage, start_s in seconds.items():
        _write(connection, f"{_START_TIME}{stage}", repr(start_s))


def read_start_times(connection: Connection) -> dict[Stage, float]:
    """What was written last, of the stages of which something was."""
    names = {f"{_START_TIME}{stage}": stage for stage in Stage}
    return {names[name]: float(value) for name, value in _read(connection, names).items()}


def write_arrivals(connection: Connection, *, sums: Mapping[Tier, TierArrivals]) -> None:
    """What came in these tiers."""
    for tier, found in sums.items():
        _write(connection, f"{_ARRIVALS}{tier}", json.dumps(asdict(found)))


def read_arrivals(connection: Connection) -> dict[Tier, TierArrivals]:
    """What was written last, of the tiers of which something was."""
    names = {f"{_ARRIVALS}{tier}": tier for tier in Tier}
    found = {names[name]: json.loads(value) for name, value in _read(connection, names).items()}
    return {
        tier: TierArrivals(kept["at"], kept["jobs"], {stage: kept["beyond_s"][stage] for stage in VIDEO_STAGES})
        for tier, kept in found.items()
    }


def _heartbeat_name(owner: str) -> str:
    return f"{_HEARTBEAT}{owner}"[:_NAME_LENGTH]


def _read(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """The facts of these names that there are."""
    rows = connection.execute(select(meta.c.name, meta.c.value).where(meta.c.name.in_(names))).all()
    return {row.name: row.value for row in rows}


def _write(connection: Connection, name: str, value: str) -> None:
    query = insert_into(connection, meta).on_conflict_do_update(index_elements=[meta.c.name], set_={"value": value})
    connection.execute(query, {"name": name, "value": value})
