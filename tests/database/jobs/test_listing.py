"""Pages of jobs: what they hold, and that the databases find them on an index."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, text

from deployments.messages import STAGES, JobKind, ProteinSpec, Stage
from serve_app.database.connection import Database
from serve_app.database.jobs import deadlines as deadlines_sql
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.listing import list_jobs, newest_jobs
from serve_app.database.jobs.rows import get_jobs
from serve_app.database.schema import jobs
from serve_app.errors import UnknownJobError
from serve_app.jobs import FINAL, RUNNING, Job, JobFilter, JobPage, JobState, Order
from tests.support.examples import examples
from tests.support.registry.sql_jobs import SPEC

TENANTS = ("acme", "globex", "initech")
TIMES = 12
FILE = ProteinSpec(parts=3, sequences=30, tokens=900, options={"pooling": ["mean"]})
JOBS = 100


def row(n: int, draw: random.Random, created_at: float) -> dict[str, Any]:
    kind = draw.choice(list(JobKind))
    state = draw.choice([one for one in JobState if one not in RUNNING or Stage(one) in STAGES[kind]])
    lease = f"lease{n}" if state in RUNNING else None
    return {
        "id": f"video_{draw.getrandbits(64):016x}",
        "model": "mochi-1",
        "kind": kind,
        "spec": (SPEC if kind is JobKind.VIDEO else FILE).to_json(),
        "state": state,
        "stage": Stage(state) if state in RUNNING else STAGES[kind][-1],
        "attempt": 1,
        "step": 0,
        "progress": 0.0,
        "tenant": draw.choice(TENANTS),
        "created_at": created_at,
        "completed_at": created_at + 1 if state in FINAL else None,
        "available_at": created_at,
        "lease": lease,
        "lease_owner": lease and "here",
        "has_work_files": draw.random() < 0.01,
        "seconds": {},
    }


@pytest.fixture
async def stored(database: Database) -> list[Job]:
    """Jobs of all tenants and states, many of them of one time."""
    draw = random.Random(1)
    rows = [row(n, draw, float(draw.randrange(TIMES))) for n in range(JOBS)]

    def fill(connection: Connection) -> None:
        connection.execute(jobs.insert(), rows)

    await database.run(fill)
    return await database.run(get_jobs, [one["id"] for one in rows])


async def all_pages(database: Database, limit: int, order: Order, wanted: JobFilter) -> list[JobPage]:
    pages: list[JobPage] = []
    after = None
    while not pages or pages[-1].has_more:
        pages.append(await database.run(list_jobs, limit=limit, after=after, order=order, wanted=wanted))
        after = pages[-1].jobs[-1].id if pages[-1].jobs else None
    return pages


def holds(wanted: JobFilter, job: Job) -> bool:
    return (
        job.kind is wanted.kind
        and (not wanted.states or job.state in wanted.states)
        and (wanted.tenant is None or job.tenant == wanted.tenant)
        and (wanted.created_after is None or job.created_at >= wanted.created_after)
        and (wanted.created_before is None or job.created_at < wanted.created_before)
    )


times = st.none() | st.integers(-1, TIMES + 1).map(float)
filters = st.builds(
    JobFilter,
    states=st.lists(st.sampled_from(JobState), max_size=4).map(tuple),
    tenant=st.none() | st.sampled_from([*TENANTS, "nobody"]),
    created_after=times,
    created_before=times,
    kind=st.sampled_from(JobKind),
)


@settings(max_examples=examples(0.6), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters, limit=st.integers(1, 40), order=st.sampled_from(["asc", "desc"]))
async def test_pages_hold_what_a_plain_filter_finds(
    database: Database, stored: list[Job], wanted: JobFilter, limit: int, order: Order
) -> None:
    found = [job for job in stored if holds(wanted, job)]
    found.sort(key=lambda job: (job.created_at, job.id), reverse=order == "desc")
    pages = await all_pages(database, limit, order, wanted)
    assert [job for page in pages for job in page.jobs] == found
    assert all(len(page.jobs) == limit for page in pages[:-1])


@settings(max_examples=examples(0.4), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters, cursor=st.integers(0, JOBS - 1), order=st.sampled_from(["asc", "desc"]))
async def test_a_page_may_begin_behind_any_job(
    database: Database, stored: list[Job], wanted: JobFilter, cursor: int, order: Order
) -> None:
    at = (stored[cursor].created_at, stored[cursor].id)
    beyond = [(job.created_at, job.id) for job in stored if holds(wanted, job)]
    beyond = sorted(key for key in beyond if (key > at if order == "asc" else key < at))
    page = await database.run(list_jobs, limit=10, after=stored[cursor].id, order=order, wanted=wanted)
    expected = beyond[:10] if order == "asc" else beyond[::-1][:10]
    assert [(job.created_at, job.id) for job in page.jobs] == expected
    assert page.has_more == (len(beyond) > 10)


@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
async def test_the_newest_of_all_kinds_have_no_gap(database: Database, stored: list[Job], limit: int) -> None:
    newest, first = await database.run(newest_jobs, limit=limit)
    keys = [(job.created_at, job.id) for job in newest]
    since = min((job.created_at, job.id) for job in stored) if first is None else (first.created_at, first.id)
    assert keys == sorted(key for job in stored if (key := (job.created_at, job.id)) >= since)
    assert (first is None) == (max(Counter(job.kind for job in stored).values()) <= limit)


async def test_paging_from_an_unknown_job_is_an_error(database: Database) -> None:
    with pytest.raises(UnknownJobError, match="nope"):
        await database.run(list_jobs, limit=5, after="nope")


# How the databases find them


@pytest.fixture
async def full(database: Database) -> Database:
    """As many jobs as make an index worth its while, and statistics; the youngest are all of one tenant and state.

    Few are leased, as in a real queue: with many of them it is close whether an index pays.
    """
    draw = random.Random(2)
    rows = [row(n, draw, float(n)) for n in range(8000)]
    for one in rows[:4000]:
        if draw.random() < 0.9:
            one |= {"lease": None, "lease_owner": None}
    for one in rows[4000:]:
        one |= {"tenant": "acme", "state": JobState.COMPLETED, "completed_at": 1e4, "lease": None, "lease_owner": None}

    def fill(connection: Connection) -> None:
        connection.execute(jobs.insert(), rows)
        connection.execute(text("ANALYZE"))

    await database.run(fill)
    return database


@contextmanager
def recorded(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """The SELECTs on jobs that are run inside."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(connection, "before_cursor_execute", note)


def plans(connection: Connection, /, function: Callable[..., object], **how: Any) -> list[str]:
    """How the database runs each statement of `function`, in its own words."""
    with recorded(connection) as statements:
        function(connection, **how)
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    found = []
    for statement, parameters in statements:
        rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
        found.append("\n".join(str(one[-1]) for one in rows))
    return found


def assert_on_index(plan: str, index: str) -> None:
    """Every row it reads is an entry of that index within the bounds, in the order asked for."""
    used = set(re.findall(r"(?:Scan (?:Backward )?using|USING (?:COVERING )?INDEX) (\w+)", plan))
    assert used == {index}, plan
    assert not re.search(r"Seq Scan|Sort|Bitmap|Filter|TEMP B-TREE|SCAN jobs$", plan, re.MULTILINE), plan


STATES = ((), (JobState.FAILED,), (JobState.FAILED, JobState.QUEUED, JobState.SAMPLING))
WINDOWS = ((None, None), (100.0, None), (None, 7000.0), (100.0, 7000.0))


async def test_every_listing_is_a_walk_on_its_index(full: Database) -> None:
    cursor = (await full.run(list_jobs, limit=3000)).jobs[-1].id
    orders: tuple[Order, ...] = ("asc", "desc")
    for states, tenant, order, after, window in product(STATES, (None, "globex"), orders, (None, cursor), WINDOWS):
        index = {
            (False, False): "jobs_by_time",
            (False, True): "jobs_by_state",
            (True, False): "jobs_by_tenant",
            (True, True): "jobs_by_tenant_and_state",
        }[tenant is not None, bool(states)]
        wanted = JobFilter(states, tenant, *window)
        found = await full.run(plans, list_jobs, limit=20, after=after, order=order, wanted=wanted)
        for plan in found if after is None else found[1:]:
            assert_on_index(plan, index)
            bounded = after is not None or window != (None, None)
            assert not bounded or "created_at" in plan, plan


READS: tuple[tuple[Callable[..., object], dict[str, Any], str], ...] = (
    (overview_sql.queued_ids, {}, "jobs_waiting"),
    (overview_sql.leased_jobs, {}, "jobs_leased"),
    (overview_sql.last_completed, {"limit": 20}, "jobs_ended"),
    (deadlines_sql.next_deadline, {}, "jobs_with_deadline"),
    (deadlines_sql.due_ids, {"now": 50.0, "limit": 20}, "jobs_with_deadline"),
    (deletion_sql.expired_jobs, {"completed_before": 50.0, "failed_before": 60.0, "limit": 20}, "jobs_ended"),
    (deletion_sql.jobs_with_work_files, {"limit": 20}, "jobs_with_work_files"),
)


async def test_the_registry_finds_what_it_needs_on_partial_indexes(full: Database) -> None:
    for function, how, index in READS:
        for plan in await full.run(plans, function, **how):
            assert index in plan
            assert not re.search(r"Seq Scan|SCAN jobs$|TEMP B-TREE", plan, re.MULTILINE), plan
