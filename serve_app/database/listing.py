"""Pages of jobs by time of creation: always on an index, whatever is filtered, so that none costs more than its length.

Each listing has an index that begins with what is filtered and ends with the order. Several states are several
bounded queries, merged, because one query over all of them would have to sort everything it finds.
"""

import math
from typing import Any

from sqlalchemy import Connection, Select, tuple_

from serve_app.database.job_rows import JOB, find_jobs, get_job
from serve_app.database.schema import jobs
from serve_app.errors import UnknownJobError
from serve_app.jobs import EVERY_JOB, Job, JobFilter, JobPage, Order

_KEY = (jobs.c.created_at, jobs.c.id)
_Position = tuple[float, str]


def list_jobs(
    connection: Connection,
    *,
    limit: int,
    after: str | None = None,
    order: Order = "desc",
    wanted: JobFilter = EVERY_JOB,
) -> JobPage:
    """A page of the jobs that `wanted` holds, beginning behind the job `after`, which need not be one of them.

    Raises:
        UnknownJobError: there is no job `after`.
    """
    cursor = None if after is None else _cursor(connection, after)
    found: list[Job] = []
    for query in page_queries(limit, cursor, order, wanted):
        found += find_jobs(connection, query)
    found.sort(key=lambda job: (job.created_at, job.id), reverse=order == "desc")
    return JobPage(jobs=tuple(found[:limit]), has_more=len(found) > limit)


def page_queries(limit: int, cursor: Job | None, order: Order, wanted: JobFilter) -> list[Select[Any]]:
    """One query for each state asked for, each of at most `limit` + 1 jobs: the one more tells of a next page."""
    tenant = {} if wanted.tenant is None else {"tenant": wanted.tenant}
    states = dict.fromkeys(wanted.states)
    prefixes: list[dict[str, str]] = [{**tenant, "state": state} for state in states] or [tenant]
    low, high = _bounds(cursor, order, wanted)
    return [_on_one_index(prefix, low, high, order).limit(limit + 1) for prefix in prefixes]


def _on_one_index(prefix: dict[str, str], low: _Position, high: _Position, order: Order) -> Select[Any]:
    """What lies between two entries of the index on `prefix` and the time, both exclusive.

    The prefix is compared and sorted with the rest, although it is the same for all: if it were a condition of its
    own, Postgres would think an index on the time alone good enough, and pass over any number of others' jobs.
    """
    columns = (*(jobs.c[name] for name in prefix), *_KEY)
    between = (tuple_(*columns) > tuple_(*prefix.values(), *low), tuple_(*columns) < tuple_(*prefix.values(), *high))
    return JOB.where(*between).order_by(*(c.desc() if order == "desc" else c.asc() for c in columns))


def _bounds(cursor: Job | None, order: Order, wanted: JobFilter) -> tuple[_Position, _Position]:
    low = (-math.inf if wanted.created_after is None else wanted.created_after, "")  # no id sorts before ""
    high = (math.inf if wanted.created_before is None else wanted.created_before, "")
    if cursor is None:
        return low, high
    position = (cursor.created_at, cursor.id)
    return (low, min(high, position)) if order == "desc" else (max(low, position), high)


def _cursor(connection: Connection, job_id: str) -> Job:
    cursor = get_job(connection, job_id)
    if cursor is None:
        raise UnknownJobError(job_id)
    return cursor
