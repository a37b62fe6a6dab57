import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from deployments.messages import Stage, VideoSpec
from serve_app import job_store
from serve_app.database import Database
from serve_app.errors import UnknownJobError
from serve_app.jobs import Job, JobError, JobState

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 2**53 - 1)
LEASE_S = 30.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


async def insert(database: Database, *ids: str) -> None:
    for n, job_id in enumerate(ids):
        await database.run(job_store.insert_job, job_id, "mochi-1", SPEC, float(n))


async def claim(database: Database, stage: Stage, *tokens: str, now: float = 100.0) -> list[Job]:
    return await database.run(job_store.claim, stage, list(tokens), "here", now, LEASE_S)


async def test_a_job_comes_back_as_it_was_written(database: Database) -> None:
    spec = replace(SPEC, prompt="ein rotes Rechteck, ‘ÄÖÜ’ 🎈", guidance_scale=3.25)
    job = await database.run(job_store.insert_job, "video_1", "mochi-1", spec, 12.5)
    assert job == await database.run(job_store.get_job, "video_1")
    assert (job.spec, job.state, job.stage, job.attempt) == (spec, JobState.QUEUED, Stage.ENCODING, 1)
    assert await database.run(job_store.get_job, "video_2") is None


async def test_the_same_id_again_is_the_same_job(database: Database) -> None:
    await insert(database, "a")
    (running,) = await claim(database, Stage.ENCODING, "t")
    again = await database.run(job_store.insert_job, "a", "mochi-1", SPEC, 99.0)
    assert again == running
    assert len(await database.run(job_store.history, "a")) == 2


async def test_a_job_runs_through_its_stages_and_completes_once(database: Database) -> None:
    await insert(database, "a")
    for n, stage in enumerate(Stage):
        (job,) = await claim(database, stage, f"t{n}", now=100.0 + n)
        assert (job.state, job.lease, job.lease_expires_at) == (JobState(stage), f"t{n}", 130.0 + n)
        ended = await database.run(job_store.finish_stage, "a", f"t{n}", {"work": 1.0}, 100.5 + n)
        assert ended is not None and ended.lease is None
        assert await database.run(job_store.finish_stage, "a", f"t{n}", {}, 300.0) is None
    done = await database.run(job_store.get_job, "a")
    assert done is not None
    assert (done.state, done.progress, done.completed_at) == (JobState.COMPLETED, 1.0, 102.5)
    assert done.step == SPEC.num_inference_steps
    assert done.seconds == {"encoding.work": 1.0, "sampling.work": 1.0, "decoding.work": 1.0}
    states = [state for _, state, _ in await database.run(job_store.history, "a")]
    assert states == ["queued", "encoding", "queued", "sampling", "queued", "decoding", "completed"]


async def test_the_longest_waiting_job_is_claimed_first_and_only_once(database: Database) -> None:
    await insert(database, "a", "b", "c")
    assert [j.id for j in await claim(database, Stage.ENCODING, "t1", "t2")] == ["a", "b"]
    assert [j.id for j in await claim(database, Stage.ENCODING, "t3", "t4")] == ["c"]
    assert await claim(database, Stage.ENCODING, "t5") == []
    assert await claim(database, Stage.SAMPLING, "t6") == []


async def test_two_registries_never_claim_the_same_job(database_url: str, database: Database) -> None:
    await insert(database, *(f"job{n}" for n in range(60)))
    other = Database(database_url)
    claims = [
        of.run(job_store.claim, Stage.ENCODING, [f"{name}{n}"], name, 100.0, LEASE_S)
        for n in range(40)
        for name, of in (("x", database), ("y", other))
    ]
    ids = [job.id for claimed in await asyncio.gather(*claims) for job in claimed]
    assert len(ids) == len(set(ids)) == 60
    other.close()


async def test_a_retry_waits_its_pause_and_keeps_the_stage(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, "t1")
    await database.run(job_store.finish_stage, "a", "t1", {}, 101.0)
    await claim(database, Stage.SAMPLING, "t2", now=102.0)
    job = await database.run(job_store.retry, "a", "t2", 103.0, 105.0, "replica lost", 2)
    assert job is not None
    assert (job.state, job.stage, job.attempt, job.lease) == (JobState.QUEUED, Stage.SAMPLING, 2, None)
    assert await database.run(job_store.next_available_at) == 105.0
    assert await claim(database, Stage.SAMPLING, "t3", now=104.9) == []
    assert len(await claim(database, Stage.SAMPLING, "t3", now=105.0)) == 1


async def test_giving_back_costs_no_attempt(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, "t1")
    job = await database.run(job_store.give_back, "a", "t1", 101.0, "no replica")
    assert job is not None and (job.state, job.attempt) == (JobState.QUEUED, 1)


async def test_a_lapsed_lease_can_do_nothing(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, "old")
    await database.run(job_store.retry, "a", "old", 101.0, 101.0, "lost", 2)
    await claim(database, Stage.ENCODING, "new", now=102.0)
    before = await database.run(job_store.get_job, "a")
    assert not await database.run(job_store.renew, "a", "old", 999.0, 5, 0.5, 5)
    assert await database.run(job_store.finish_stage, "a", "old", {}, 103.0) is None
    assert await database.run(job_store.retry, "a", "old", 103.0, 103.0, "", 2) is None
    assert await database.run(job_store.park, "a", "old", 103.0, 5, 5, "") is None
    assert not await database.run(job_store.keep_checkpoint, "a", "old", 5)
    assert await database.run(job_store.give_back, "a", "old", 103.0, "") is None
    assert await database.run(job_store.fail, "a", "old", 103.0, JobError("x", "y")) is None
    assert await database.run(job_store.get_job, "a") == before


async def test_renewing_keeps_progress_and_pushes_the_expiry(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, "t")
    assert await database.run(job_store.renew, "a", "t", 500.0, 7, 0.4, 7)
    job = await database.run(job_store.get_job, "a")
    assert job is not None and (job.lease_expires_at, job.step, job.progress) == (500.0, 7, 0.4)
    assert await database.run(job_store.renew, "a", "t", 501.0, 9, 0.5, 2)
    job = await database.run(job_store.get_job, "a")
    assert job is not None and job.steps_run == 9


async def test_a_failed_job_tells_why(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, "t")
    job = await database.run(job_store.fail, "a", "t", 101.0, JobError("prompt_too_long", "too long"))
    assert job is not None
    assert (job.state, job.error, job.completed_at) == (
        JobState.FAILED,
        JobError("prompt_too_long", "too long"),
        101,
    )
    assert await database.run(job_store.count_live) == {}


async def test_leases_of_another_registry_lapse_by_the_clock(database: Database) -> None:
    await insert(database, "a", "b")
    await claim(database, Stage.ENCODING, "t1", "t2")
    assert await database.run(job_store.foreign_lapsed_jobs, "here", 1000.0) == []
    assert await database.run(job_store.foreign_lapsed_jobs, "there", 130.0) == []
    lapsed = await database.run(job_store.foreign_lapsed_jobs, "there", 130.1)
    assert [job.id for job in lapsed] == ["a", "b"]
    assert [job.id for job in await database.run(job_store.leased_jobs)] == ["a", "b"]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_cover_every_job_once_in_order(database: Database, order: job_store.Order) -> None:
    ids = [f"job{n:02}" for n in range(23)]
    for n, job_id in enumerate(ids):
        await database.run(job_store.insert_job, job_id, "mochi-1", SPEC, float(n // 4))  # equal times too
    seen: list[str] = []
    while True:
        page = await database.run(job_store.list_jobs, 5, seen[-1] if seen else None, order)
        seen += [job.id for job in page.jobs]
        if not page.has_more:
            break
    assert seen == (ids if order == "asc" else ids[::-1])


async def test_paging_from_an_unknown_job_is_an_error(database: Database) -> None:
    with pytest.raises(UnknownJobError, match="nope"):
        await database.run(job_store.list_jobs, 5, "nope")
