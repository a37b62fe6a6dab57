"""What the processes of a cluster have counted in memory, kept in SQL so that a counter never falls. Functions of a
connection.

A row holds all that one process has counted since it began, so writing it twice changes nothing. The row without a
process holds what those counted that ended long ago.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from deployments.metrics.names import BY_NAME
from deployments.metrics.recorder import Distribution, Series, Value, no_observation
from serve_app.config import DAY_S
from serve_app.database.engine import insert_into
from serve_app.database.schema import metric_snapshots as rows

ENDED = ""
"""The process of the row for all that ended long ago."""
FORGET_S = 7 * DAY_S  # after which what another cluster counted and never asked for again is deleted


@dataclass(frozen=True, slots=True)
class KeptSnapshot:
    """A row."""

    owner: str  # the cluster
    process: str
    role: str
    number: int
    values: dict[Series, Value]  # of counters and histograms; how things stand now is no matter of the past


def read_snapshots(connection: Connection, owner: str, *, alone: bool, now: float) -> list[KeptSnapshot]:
    """What was kept for this cluster.

    Args:
        owner: the cluster.
        alone: no other cluster can be on this database: what earlier ones counted is this one's now.
        now: Unix seconds.
    """
    connection.execute(delete(rows).where(rows.c.at < now - FORGET_S, rows.c.owner != owner))
    query = select(rows.c.owner, rows.c.process, rows.c.role, rows.c.number, rows.c.counted)
    found = connection.execute(query if alone else query.where(rows.c.owner == owner)).all()
    return [
        KeptSnapshot(of, process, role, number, _from_json(counted)) for of, process, role, number, counted in found
    ]


def write_snapshots(
    connection: Connection, snapshots: Sequence[KeptSnapshot], gone: Sequence[tuple[str, str]], *, now: float
) -> None:
    """Write these rows.

    Args:
        snapshots: the rows.
        gone: owner and process of rows to be deleted: what they counted is in the row of the ended ones now.
        now: Unix seconds.
    """
    for owner, process in gone:
        connection.execute(delete(rows).where(rows.c.owner == owner, rows.c.process == process))
    values = [
        {
            "owner": kept.owner,
            "process": kept.process,
            "role": kept.role,
            "number": kept.number,
            "counted": _to_json(kept.values),
            "at": now,
        }
        for kept in snapshots
    ]
    if values:
        query = insert_into(connection, rows)
        changed = {name: query.excluded[name] for name in ("role", "number", "counted", "at")}
        connection.execute(query.on_conflict_do_update(index_elements=list(rows.primary_key), set_=changed), values)


def _to_json(values: dict[Series, Value]) -> str:
    return json.dumps(
        [
            [name, labels, [value.counts, value.total] if isinstance(value, Distribution) else value]
            for (name, labels), value in values.items()
        ]
    )


def _from_json(text: str) -> dict[Series, Value]:
    """What is no metric any more, or has other labels or buckets than then, is left out."""
    values: dict[Series, Value] = {}
    for name, labels, value in json.loads(text):
        metric = BY_NAME.get(name)
        if metric is None or len(metric.labels) != len(labels):
            continue
        if not isinstance(value, list):
            values[name, tuple(labels)] = value
        elif len(value[0]) == len(no_observation(metric).counts):
            values[name, tuple(labels)] = Distribution(tuple(value[0]), value[1])
    return values
