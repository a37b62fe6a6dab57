"""Webhook deliveries in SQL: which are due, who holds them, and what became of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Connection

from deployments.messages import ProteinSpec, Stage
from serve_app.database.connection import Database
from serve_app.database.jobs import webhooks as webhooks_sql
from serve_app.database.jobs.webhooks import Delivery
from serve_app.jobs import Job, JobState
from serve_app.scheduling.webhook_pacing import MAX_AT_ONCE, MAX_PER_ORIGIN, MAX_PER_TENANT, DeliveryLimits
from tests.support.registry.deliveries import get_delivery, select_deliveries
from tests.support.registry.sql_jobs import SPEC

URL = "https://example.com/hook"
HOLD_S = 30.0


def job(job_id: str, url: str | None = URL, tenant: str = "t", state: JobState = JobState.COMPLETED) -> Job:
    return Job(f"video_{job_id}", "mochi-1", SPEC, state, Stage.DECODING, 1, 0.0, tenant=tenant, webhook_url=url)


async def add(database: Database, *jobs: Job, at: float = 10.0) -> None:
    for ended in jobs:
        await database.run(webhooks_sql.add_delivery, ended, now=at)


async def hold(database: Database, now: float = 10.0, limits: DeliveryLimits | None = None) -> list[Delivery]:
    return await database.run(webhooks_sql.hold_due, now=now, hold_s=HOLD_S, limits=limits or DeliveryLimits())


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.id for delivery in deliveries]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (JobState.COMPLETED, "video.completed"),
        (JobState.FAILED, "video.failed"),
        (JobState.CANCELLED, "video.cancelled"),
    ],
)
async def test_an_ended_job_is_told_once(database: Database, state: JobState, kind: str) -> None:
    await add(database, job("a", state=state), at=10.0)
    await add(database, job("a", state=state), at=99.0)
    assert await get_delivery(database, "a") == Delivery(
        "evt_a", "video_a", "t", URL, kind, 10.0, 0, 10.0, delivered_at=None, status=None, error=None
    )


async def test_the_end_of_a_file_of_proteins_has_a_name_of_its_own(database: Database) -> None:
    spec = ProteinSpec(parts=1, sequences=1, tokens=9, options={})
    await add(database, replace(job("a"), spec=spec), replace(job("b", state=JobState.FAILED), spec=spec))
    assert [one.type for one in await hold(database)] == ["proteins.completed", "proteins.failed"]


async def test_nothing_is_told_without_a_url_or_before_the_end(database: Database) -> None:
    await add(database, job("a", url=None), job("b", state=JobState.QUEUED), job("c", state=JobState.DECODING))
    assert await hold(database, now=1e12) == []


async def test_a_delivery_goes_with_the_transaction_that_ends_its_job(database: Database) -> None:
    def end_and_break(connection: Connection) -> None:
        webhooks_sql.add_delivery(connection, job("a"), now=10.0)
        raise ValueError("broken")

    with pytest.raises(ValueError):
        await database.run(end_and_break)
    assert await hold(database, now=1e12) == []


async def test_what_is_due_is_held_until_its_hold_is_over(database: Database) -> None:
    await add(database, job("b"), at=9.0)
    await add(database, job("a"), job("c"), at=10.0)
    await add(database, job("later"), at=10.5)
    held = await hold(database, now=10.0)
    assert ids(held) == ["evt_b", "evt_a", "evt_c"]
    assert {delivery.next_at for delivery in held} == {40.0}
    assert await get_delivery(database, "a") == held[1]
    assert ids(await hold(database, now=39.0)) == ["evt_later"]
    assert ids(await hold(database, now=40.0)) == ["evt_a", "evt_b", "evt_c"]


async def test_what_was_taken_is_not_sent_again(database: Database) -> None:
    await add(database, job("a"))
    (held,) = await hold(database)
    await database.run(webhooks_sql.mark_delivered, held, now=11.0, status=204)
    done = replace(held, attempts=1, next_at=None, delivered_at=11.0, status=204)
    assert await get_delivery(database, "a") == done
    assert await hold(database, now=1e12) == []
    await database.run(webhooks_sql.mark_delivered, held, now=12.0, status=200)
    assert await database.run(webhooks_sql.mark_failed, held, next_at=50.0, status=500, error="late") is None
    assert await get_delivery(database, "a") == done


async def test_what_was_not_taken_comes_back_when_it_is_due(database: Database) -> None:
    await add(database, job("a"))
    (held,) = await hold(database)
    failed = await database.run(webhooks_sql.mark_failed, held, next_at=50.0, status=500, error="the answer was 500")
    assert failed == await get_delivery(database, "a")
    assert failed == replace(held, attempts=1, next_at=50.0, status=500, error="the answer was 500")
    assert await hold(database, now=49.0) == []
    (again,) = await hold(database, now=50.0)
    given_up = await database.run(webhooks_sql.mark_failed, again, next_at=None, status=None, error="no answer")
    assert given_up == await get_delivery(database, "a")
    assert given_up == replace(failed, attempts=2, next_at=None, status=None, error="no answer")
    assert await hold(database, now=1e12) == []


async def test_who_lost_its_hold_cannot_say_that_it_failed_but_that_it_was_taken(database: Database) -> None:
    await add(database, job("a"))
    (first,) = await hold(database)
    (second,) = await hold(database, now=100.0)
    assert await database.run(webhooks_sql.mark_failed, first, next_at=None, status=410, error="gone") is None
    assert await get_delivery(database, "a") == second
    await database.run(webhooks_sql.mark_delivered, first, now=101.0, status=200)
    assert await database.run(webhooks_sql.mark_failed, second, next_at=200.0, status=500, error="x") is None
    assert (await get_delivery(database, "a")).next_at is None


async def test_of_a_forgotten_delivery_nothing_is_written(database: Database) -> None:
    await add(database, job("a"), job("b"))
    a, b = await hold(database)
    await database.run(webhooks_sql.delete_deliveries, ["video_a", "video_b"])
    await database.run(webhooks_sql.mark_delivered, a, now=11.0, status=200)
    assert await database.run(webhooks_sql.mark_failed, b, next_at=50.0, status=500, error="x") is None
    assert await database.run(select_deliveries, "video_a") == []


async def test_a_full_origin_or_tenant_holds_up_no_others(database: Database) -> None:
    await add(database, *(job(f"slow{n:02}", "http://slow.com/x") for n in range(50)), at=1.0)
    await add(database, *(job(f"other{n}", f"http://{n}.com?x", "other") for n in range(15)), at=2.0)
    await add(database, job("longer name", "http://slow.com.au/"), job("port", "http://slow.com:81"), at=3.0)
    limits = DeliveryLimits()
    first = await hold(database, limits=limits)
    assert limits.free == MAX_AT_ONCE
    slow, others = [f"evt_slow{n:02}" for n in range(MAX_PER_ORIGIN)], [f"evt_other{n}" for n in range(15)]
    assert ids(first)[:MAX_PER_ORIGIN] == slow
    assert set(ids(first)[MAX_PER_ORIGIN:]) < {*others, "evt_longer name", "evt_port"}
    assert len([delivery for delivery in first if delivery.tenant == "other"]) == MAX_PER_TENANT
    assert len(first) == MAX_PER_ORIGIN + MAX_PER_TENANT + 2
    for delivery in first:
        assert limits.begin(delivery.tenant, delivery.url)
    assert await hold(database, limits=limits) == []
    assert await database.run(webhooks_sql.next_due_at, limits=limits) == 40.0
    assert await database.run(webhooks_sql.next_due_at, limits=DeliveryLimits()) == 1.0
    limits.end("t", "http://slow.com/x")
    assert ids(await hold(database, limits=limits)) == ["evt_slow04"]


@pytest.mark.parametrize("url", ["http://slow.com", "http://slow.com/", "http://slow.com?x", "http://slow.com/x?y"])
async def test_a_full_origin_is_known_in_every_url(database: Database, url: str) -> None:
    limits = DeliveryLimits()
    while limits.begin("other", "http://slow.com/x"):
        pass
    await add(database, job("a", url))
    assert await hold(database, limits=limits) == []
    assert await database.run(webhooks_sql.next_due_at, limits=limits) is None
    assert ids(await hold(database)) == ["evt_a"]


async def test_two_registries_never_hold_the_same(database_url: str, database: Database) -> None:
    other = Database(database_url)
    await add(database, *(job(f"{n:03}", f"http://{n}.com/", f"t{n % 7}") for n in range(100)))
    calls = [
        registry.run(webhooks_sql.hold_due, now=10.0, hold_s=HOLD_S, limits=DeliveryLimits())
        for _ in range(4)
        for registry in (database, other)
    ]
    held = [delivery.id for found in await asyncio.gather(*calls) for delivery in found]
    other.close()
    assert len(held) == len(set(held)) >= MAX_AT_ONCE


async def test_when_the_next_is_due(database: Database) -> None:
    assert await database.run(webhooks_sql.next_due_at, limits=DeliveryLimits()) is None
    await add(database, job("a"), at=20.0)
    await add(database, job("b"), at=15.0)
    assert await database.run(webhooks_sql.next_due_at, limits=DeliveryLimits()) == 15.0
    (held,) = await hold(database, now=15.0)
    await database.run(webhooks_sql.mark_delivered, held, now=16.0, status=200)
    assert await database.run(webhooks_sql.next_due_at, limits=DeliveryLimits()) == 20.0


async def test_only_old_ones_that_are_done_are_forgotten(database: Database) -> None:
    await add(database, job("a"), job("b"), job("waits"), at=1.0)
    await add(database, job("young"), at=5.0)
    for delivery in await hold(database):
        if delivery.id != "evt_waits":
            await database.run(webhooks_sql.mark_failed, delivery, next_at=None, status=410, error="gone")
    assert await database.run(webhooks_sql.forget_old_deliveries, before=5.0, limit=1) == 1
    assert await database.run(webhooks_sql.forget_old_deliveries, before=5.0, limit=10) == 1
    assert await database.run(webhooks_sql.forget_old_deliveries, before=5.0, limit=10) == 0
    assert (await get_delivery(database, "waits")).next_at is not None
    assert (await get_delivery(database, "young")).status == 410


async def test_the_backlog_is_what_waits_and_how_long_it_is_due(database: Database) -> None:
    async def backlog(now: float) -> tuple[int, float]:
        return await database.run(webhooks_sql.read_backlog, now=now)

    assert await backlog(now=10.0) == (0, 0.0)
    await add(database, job("a"), at=10.0)
    await add(database, job("b"), job("c"), at=20.0)
    assert await backlog(now=25.0) == (3, 15.0)
    (first,) = await hold(database, now=15.0)  # one that is being sent is not overdue
    assert await backlog(now=25.0) == (3, 5.0)
    await database.run(webhooks_sql.mark_delivered, first, now=26.0, status=200)
    assert await backlog(now=19.0) == (2, 0.0)
