"""How a job is accepted: once by its id, and once by its idempotency key."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, delete, func, select, update

from deployments.messages import Stage
from serve_app.config import DAY_S
from serve_app.database.connection import Database
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs.intake import find_accepted, forget_old_keys, insert_job
from serve_app.database.jobs.rows import get_job
from serve_app.database.schema import idempotency_keys, jobs
from serve_app.errors import IdempotencyKeyReusedError
from serve_app.jobs import Acceptance, DraftReason, JobState, Requested, Submission, Tier
from tests.support.registry.sql_jobs import SPEC, accept, claim

FIRST = Submission("a", "mochi-1", SPEC, "acme", idempotency_key="order 7", fingerprint="f1")


def _rows(connection: Connection) -> tuple[int, int]:
    counts = (select(func.count()).select_from(table) for table in (jobs, idempotency_keys))
    return tuple(connection.execute(count).scalar_one() for count in counts)  # type: ignore[return-value]


async def test_a_job_comes_back_as_it_was_accepted(database: Database) -> None:
    spec = replace(SPEC, prompt="ein rotes Rechteck, ‘ÄÖÜ’ 🎈", guidance_scale=3.25)
    accepted = await accept(database, Submission("video_1", "mochi-1", spec, "acme", Tier.BATCH), 12.5)
    assert not accepted.repeated
    job = accepted.job
    assert job == await database.run(get_job, "video_1")
    assert (job.spec, job.state, job.stage, job.attempt) == (spec, JobState.QUEUED, Stage.ENCODING, 1)
    assert (job.tenant, job.tier, job.created_at, job.available_at) == ("acme", Tier.BATCH, 12.5, 12.5)
    assert await database.run(get_job, "video_2") is None


async def test_a_draft_under_load_comes_back_with_its_reason(database: Database) -> None:
    draft = replace(SPEC, quality="draft", num_inference_steps=4)
    asked = Submission("video_1", "mochi-1", SPEC, requested=Requested(quality="auto"), draft=draft)
    job = (await accept(database, asked.as_draft(90.04, 60.0), 12.5)).job
    assert job == await database.run(get_job, "video_1")
    assert job.spec == draft
    assert job.requested == Requested(quality="auto", draft=DraftReason(90.0, 60.0, "exact", 20, 3.0))


async def test_what_an_earlier_version_wrote_is_read(database: Database) -> None:
    await accept(database, Submission("video_1", "mochi-1", SPEC), 12.5)
    written = {"seconds": "2", "size": None, "ignored": ["user"]}
    await database.run(lambda connection: connection.execute(update(jobs).values(requested=written)))
    job = await database.run(get_job, "video_1")
    assert job is not None and job.requested == Requested(seconds="2", ignored=("user",))


async def test_the_same_id_again_is_the_same_job(database: Database) -> None:
    await accept(database, Submission("a", "mochi-1", SPEC), 0.0)
    (running,) = await claim(database, Stage.ENCODING, a="t")
    again = await accept(database, Submission("a", "mochi-1", SPEC), 99.0)
    assert again == Acceptance(running, repeated=True)
    assert len(await database.run(moves_sql.history, "a")) == 2


async def test_what_is_found_accepted_is_what_would_be_inserted(database: Database) -> None:
    submission = Submission("a", "mochi-1", SPEC)
    assert await database.run(find_accepted, submission, now=0.0, keep_keys_s=DAY_S) is None
    assert await database.run(get_job, "a") is None
    accepted = await accept(database, submission, 0.0)
    assert await database.run(find_accepted, submission, now=1.0, keep_keys_s=DAY_S) == replace(accepted, repeated=True)


# Idempotency keys


async def test_the_same_key_and_request_give_the_same_job(database: Database) -> None:
    first = await accept(database, FIRST, 10.0)
    again = await accept(database, replace(FIRST, job_id="b"), 20.0)
    assert (first.repeated, again) == (False, replace(first, repeated=True))
    found = await database.run(find_accepted, replace(FIRST, job_id="c"), now=30.0, keep_keys_s=DAY_S)
    assert found == again
    assert await database.run(_rows) == (1, 1)


async def test_the_same_key_with_another_request_is_refused_and_nothing_is_written(database: Database) -> None:
    await accept(database, FIRST, 10.0)
    other = replace(FIRST, job_id="b", fingerprint="f2")
    for look in (insert_job, find_accepted):
        with pytest.raises(IdempotencyKeyReusedError, match="order 7"):
            await database.run(look, other, now=20.0, keep_keys_s=DAY_S)
    assert await database.run(_rows) == (1, 1)


@pytest.mark.parametrize("change", [{"fingerprint": "f2"}, {"sent_fingerprint": "s2"}, {"sent_fingerprint": None}])
async def test_a_request_is_the_same_if_it_was_sent_so_or_asks_for_the_same(
    database: Database, change: dict[str, Any]
) -> None:
    sent = replace(FIRST, sent_fingerprint="s1")
    await accept(database, sent, 10.0)
    again = await accept(database, replace(sent, job_id="b", **change), 20.0)
    assert (again.job.id, again.repeated) == ("a", True)
    with pytest.raises(IdempotencyKeyReusedError):
        await accept(database, replace(sent, fingerprint="f2", sent_fingerprint="s2"), 20.0)


async def test_a_key_from_before_there_were_two_fingerprints_goes_by_the_one(database: Database) -> None:
    await accept(database, FIRST, 10.0)
    new = replace(FIRST, job_id="b", sent_fingerprint="s1")
    assert (await accept(database, new, 20.0)).repeated
    with pytest.raises(IdempotencyKeyReusedError):
        await accept(database, replace(new, fingerprint="f2"), 20.0)


async def test_a_key_belongs_to_one_tenant(database: Database) -> None:
    await accept(database, FIRST, 10.0)
    other = await accept(database, replace(FIRST, job_id="b", tenant="globex", fingerprint="f2"), 20.0)
    assert not other.repeated


async def test_a_key_is_free_again_after_its_time(database: Database) -> None:
    await accept(database, FIRST, 10.0)
    renewed = replace(FIRST, job_id="b", fingerprint="f2")
    assert (await accept(database, FIRST, 9.9 + DAY_S)).repeated
    assert not (await accept(database, renewed, 10.0 + DAY_S)).repeated
    again = await accept(database, replace(renewed, job_id="c"), 11.0 + DAY_S)
    assert (again.job.id, again.repeated) == ("b", True)


async def test_a_key_whose_job_is_gone_is_free(database: Database) -> None:
    await accept(database, FIRST, 10.0)
    await database.run(lambda connection: connection.execute(delete(jobs)) and None)
    assert not (await accept(database, replace(FIRST, job_id="b", fingerprint="f2"), 20.0)).repeated


async def test_old_keys_are_forgotten(database: Database) -> None:
    for n in range(5):
        await accept(database, replace(FIRST, job_id=f"job{n}", idempotency_key=f"key{n}"), float(n))
    assert await database.run(forget_old_keys, before=3.0) == 3
    assert await database.run(_rows) == (5, 2)
    assert not (await accept(database, replace(FIRST, job_id="new", idempotency_key="key0"), 9.0)).repeated


async def test_two_registries_at_once_make_one_job_of_one_key(database_url: str, database: Database) -> None:
    other = Database(database_url)
    calls = [
        accept(registry, replace(FIRST, job_id=f"{name}{n}", idempotency_key=f"key{n % 7}"), 1.0)
        for n in range(70)
        for name, registry in (("x", database), ("y", other))
    ]
    accepted = await asyncio.gather(*calls)
    assert len({one.job.id for one in accepted}) == 7
    assert sum(not one.repeated for one in accepted) == 7
    assert await database.run(_rows) == (7, 7)
    other.close()


async def test_a_refusal_takes_nothing_from_those_it_arrives_with(database: Database) -> None:
    await accept(database, FIRST, 1.0)
    refused = replace(FIRST, fingerprint="f2")
    submissions = [refused if n % 3 == 0 else Submission(f"job{n}", "mochi-1", SPEC) for n in range(60)]
    results = await asyncio.gather(*(accept(database, s, 2.0) for s in submissions), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [IdempotencyKeyReusedError if n % 3 == 0 else Acceptance for n in range(60)]
    assert await database.run(_rows) == (41, 1)
