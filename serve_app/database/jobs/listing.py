"""Pages of jobs by time of creation. Each page is read from an index, so that it costs no more than its length.

Each kind of filter has an index that begins with the filtered columns and ends with the order. A
filter of several states becomes several bounded queries, whose results are merged: one query would
have to sort everything it finds.
"""

import math
from typing import Any

from sqlalchemy import Connection, Select, tuple_

from deployments.messages import JobKind
from serve_app.database.jobs.rows import JOB, find_jobs, is_kept, read_job
from serve_app.database.schema import jobs
from serve_app.errors import UnknownJobError
from serve_app.jobs import EVERY_VIDEO, Job, JobFilter, JobPage, Order

_KEY = (jobs.c.created_at, jobs.c.id)
_Position = tuple[float, str]


def list_jobs(
    connection: Connection,
    *,
    limit: int,
    after: str | None = None,
    order: Order = "desc",
    wanted: JobFilter = EVERY_VIDEO,
) -> JobPage:
    """A page of the wanted jobs.

    Args:
        limit: the most jobs on the page.
        after: the id of the job that the page begins behind; it need not be one of the wanted.
        order: by time of creation.
        wanted: which jobs, of which kind.

    Raises:
        UnknownJobError: there is no job `after`.
    """
    cursor = None if after is None else read_job(connection, after, expiry=wanted.expiry)
    if after is not None and cursor is None:
        raise UnknownJobError(after)
    found: list[Job] = []
    for query in _page_queries(limit, cursor, order, wanted):
        found += find_jobs(connection, query)
    found.sort(key=_key_of, reverse=order == "desc")
    return JobPage(jobs=tuple(found[:limit]), has_more=len(found) > limit)


def newest_jobs(connection: Connection, *, limit: int) -> tuple[list[Job], Job | None]:
    """The newest jobs of all kinds, the oldest first, and the first one; None for it if these are all there are.

    All jobs that were created since the first one are among them.

    Args:
        limit: the most jobs of each kind.
    """
    found: list[Job] = []
    first: Job | None = None
    for kind in JobKind:
        page = list_jobs(connection, limit=limit, wanted=JobFilter(kind=kind))
        found += page.jobs
        if page.has_more and (first is None or _key_of(page.jobs[-1]) > _key_of(first)):
            first = page.jobs[-1]
    found.sort(key=_key_of)
    return [job for job in found if first is None or _key_of(job) >= _key_of(first)], first


def _key_of(job: Job) -> _Position:
    return job.created_at, job.id


def _page_queries(limit: int, cursor: Job | None, order: Order, wanted: JobFilter) -> list[Select[Any]]:
    """One query for each wanted state, each of at most `limit` + 1 jobs: the one more shows that a page follows."""
    begin: dict[str, str] = {"kind": wanted.kind}
    if wanted.tenant is not None:
        begin["tenant"] = wanted.tenant
    states = dict.fromkeys(wanted.states)  # each once
    prefixes: list[dict[str, str]] = [{**begin, "state": state} for state in states] or [begin]
    low, high = _bounds(cursor, order, wanted)
    return [
        _on_one_index(prefix, low, high, order).where(is_kept(wanted.expiry)).limit(limit + 1) for prefix in prefixes
    ]


def _on_one_index(prefix: dict[str, str], low: _Position, high: _Position, order: Order) -> Select[Any]:
    """The jobs between two entries, both exclusive, of the index on the prefix and the time.

    The prefix is compared and sorted with the rest, although it is the same for all: with a
    condition of its own, Postgres might take the index on the time alone and pass over any number
    of other tenants' jobs.
    """
    columns = (*(jobs.c[name] for name in prefix), *_KEY)
    between = (tuple_(*columns) > tuple_(*prefix.values(), *low), tuple_(*columns) < tuple_(*prefix.values(), *high))
    return JOB.where(*between).order_by(*(c.desc() if order == "desc" else c.asc() for c in columns))


def _bounds(cursor: Job | None, order: Order, wanted: JobFilter) -> tuple[_Position, _Position]:
    """The entries before and behind the page, both exclusive."""
    low = (-math.inf if wanted.created_after is None else wanted.created_after, "")  # no id sorts before ""
    high = (math.inf if wanted.created_before is None else wanted.created_before, "")
    if cursor is None:
        return low, high
    position = (cursor.created_at, cursor.id)
    return (low, min(high, position)) if order == "desc" else (max(low, position), high)
