"""Every change of a job in SQL, and what is asked of all jobs."""

import asyncio
import random
import threading

from sqlalchemy import Connection, Engine, event, text

from deployments.messages import VIDEO_STAGES, Stage
from serve_app.database.connection import Database
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import claims as claims_sql
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs import stage_ends as ends_sql
from serve_app.database.jobs.rows import get_job, get_jobs
from serve_app.jobs import (
    Job,
    JobError,
    JobState,
    Move,
    Submission,
    Usage,
    overall_progress,
)
from tests.support.registry.sql_jobs import SPEC, accept, claim, claim_all, end_job
from tests.support.servers.postgres import fresh_database


async def insert(database: Database, *ids: str) -> None:
    for n, job_id in enumerate(ids):
        await accept(database, Submission(job_id, "mochi-1", SPEC), float(n))


async def get(database: Database, job_id: str) -> Job:
    job = await database.run(get_job, job_id)
    assert job is not None
    return job


async def finish(database: Database, lease: str, now: float, device_s: float) -> Job | None:
    """The stage of job `a` is done."""
    return await database.run(ends_sql.finish_stage, "a", lease, seconds={}, now=now, used=Usage(device_s=device_s))


async def retry(
    database: Database, lease: str, now: float, used: Usage, deaths: int = 0, died_at: float | None = None
) -> Job | None:
    """Job `a` is lost in its first attempt; it may be tried again after two seconds."""
    return await database.run(
        ends_sql.retry,
        "a",
        lease,
        now=now,
        available_at=now + 2.0,
        code="replica_lost",
        note="replica lost",
        attempt=2,
        used=used,
        deaths=deaths,
        died_at=died_at,
    )


async def sampling(database: Database) -> Job:
    """Job `a`, held by a sampler under the lease `s`."""
    await insert(database, "a")
    await claim(database, Stage.ENCODING, a="e")
    await finish(database, "e", now=101.0, device_s=0.25)
    (job,) = await claim(database, Stage.SAMPLING, now=102.0, a="s")
    return job


async def test_a_job_runs_through_its_stages_and_completes_once(database: Database) -> None:
    await insert(database, "a")
    for n, stage in enumerate(VIDEO_STAGES):
        (job,) = await claim(database, stage, now=100.0 + n, a=f"t{n}")
        assert (job.state, job.lease, job.lease_expires_at) == (JobState(stage), f"t{n}", 130.0 + n)
        assert job == await get(database, "a")
        used = Usage(steps=8 if stage is Stage.SAMPLING else 0, device_s=0.5)  # 12 are in the row already
        ended = await database.run(ends_sql.finish_stage, "a", f"t{n}", seconds={"work": 1.0}, now=100.5 + n, used=used)
        assert ended is not None and ended.lease is None
        assert ended == await get(database, "a")
        assert await finish(database, f"t{n}", now=300.0, device_s=9.0) is None
    done = await get(database, "a")
    assert (done.state, done.progress, done.started_at, done.completed_at) == (JobState.COMPLETED, 1.0, 100.0, 102.5)
    assert (done.step, done.steps_run, done.device_s) == (SPEC.num_inference_steps, 8, 1.5)
    assert done.seconds == {"encoding.work": 1.0, "sampling.work": 1.0, "decoding.work": 1.0}


async def test_the_history_begins_with_the_acceptance_and_ends_with_the_end(database: Database) -> None:
    await sampling(database)
    await database.run(cancellation_sql.cancel, "a", now=103.0)
    assert await database.run(moves_sql.history, "a") == [
        Move(0.0, JobState.QUEUED, Stage.ENCODING, 1, "accepted"),
        Move(100.0, JobState.ENCODING, Stage.ENCODING, 1, "claimed"),
        Move(101.0, JobState.QUEUED, Stage.SAMPLING, 1, "encoding done"),
        Move(102.0, JobState.SAMPLING, Stage.SAMPLING, 1, "claimed"),
        Move(103.0, JobState.CANCELLED, Stage.SAMPLING, 1, "cancelled"),
    ]
    assert await database.run(moves_sql.history, "b") == []


async def test_only_what_waits_for_that_stage_is_claimed(database: Database) -> None:
    await insert(database, "a", "b", "c")
    assert await claim(database, Stage.SAMPLING, a="t1") == []
    assert [job.id for job in await claim(database, Stage.ENCODING, a="t1", b="t2", gone="t3")] == ["a", "b"]
    assert [job.id for job in await claim(database, Stage.ENCODING, a="t4", c="t5")] == ["c"]
    await database.run(cancellation_sql.cancel, "b", now=101.0)
    assert await claim(database, Stage.ENCODING, b="t6") == []
    assert await claim(database, Stage.ENCODING) == []


async def test_two_registries_never_claim_the_same_job_and_never_deadlock(
    database_url: str, database: Database
) -> None:
    other = Database(database_url)
    conflicts: list[object] = []

    def note(context: object) -> None:
        conflicts.append(context)

    event.listen(Engine, "handle_error", note)
    try:
        for round_ in range(8):
            await _claim_by_two(database, other, round_)
    finally:
        event.remove(Engine, "handle_error", note)
        other.close()
    assert conflicts == []


async def _claim_by_two(database: Database, other: Database, seed: int) -> None:
    draw = random.Random(seed)
    ids = [f"job{seed}-{n}" for n in range(40)]
    await insert(database, *ids)
    calls = []
    for n in range(30):
        for name, registry in (("x", database), ("y", other)):
            leases = dict.fromkeys(draw.sample(ids, 6), f"{name}{n}")
            calls.append(claim_all(registry, Stage.ENCODING, leases, owner=name))
    claimed = [job for jobs in await asyncio.gather(*calls) for job in jobs]
    assert len({job.id for job in claimed}) == len(claimed)
    assert all([await get(database, job.id) == job for job in claimed])
    left = {job.id: "z" for job in [await get(database, job_id) for job_id in ids] if job.state is JobState.QUEUED}
    assert len(left) + len(claimed) == len(ids)


async def test_a_retry_waits_its_pause_and_begins_at_the_checkpoint(database: Database) -> None:
    await sampling(database)
    assert await database.run(claims_sql.keep_checkpoint, "a", "s", step=8)
    assert await database.run(claims_sql.renew, "a", "s", expires_at=140.0, step=11, progress=0.5, used=Usage(11, 2.0))
    job = await retry(database, "s", now=103.0, used=Usage(1, 0.5), deaths=1, died_at=0.5)
    assert job is not None and job == await get(database, "a")
    assert (job.state, job.stage, job.attempt, job.lease) == (JobState.QUEUED, Stage.SAMPLING, 2, None)
    assert (job.step, job.steps_run, job.device_s) == (8, 12, 2.75)
    assert job.progress == overall_progress(Stage.SAMPLING, 8, 20)
    assert (job.available_at, job.deaths, job.died_at) == (105.0, 1, 0.5)
    (again,) = await claim(database, Stage.SAMPLING, now=106.0, a="s2")
    assert again.checkpoint_step == 8


async def test_parking_keeps_every_step_and_is_counted(database: Database) -> None:
    await sampling(database)
    job = await database.run(
        ends_sql.park, "a", "s", now=103.0, step=7, used=Usage(7, 1.5), note="an interactive job waits"
    )
    assert job is not None and job == await get(database, "a")
    assert (job.state, job.attempt, job.parks, job.lease_owner) == (JobState.QUEUED, 1, 1, None)
    assert (job.step, job.checkpoint_step, job.steps_run, job.device_s) == (7, 7, 7, 1.75)
    assert job.progress == overall_progress(Stage.SAMPLING, 7, 20)


async def go_back(database: Database, lease: str, now: float, used: Usage) -> Job | None:
    """The input of job `a` cannot be used."""
    return await database.run(ends_sql.go_back, "a", lease, now=now, available_at=now + 2.0, note="gone", used=used)


async def test_without_its_embeddings_a_job_is_encoded_again_from_the_beginning(database: Database) -> None:
    await sampling(database)
    assert await database.run(claims_sql.keep_checkpoint, "a", "s", step=8)
    job = await go_back(database, "s", 103.0, Usage(1, 0.5))
    assert job is not None and job == await get(database, "a")
    assert (job.state, job.stage, job.attempt, job.remakes) == (JobState.QUEUED, Stage.ENCODING, 1, 1)
    assert (job.step, job.checkpoint_step, job.progress, job.available_at) == (0, 0, 0.0, 105.0)
    assert (job.steps_run, job.device_s) == (1, 0.75)
    assert (await database.run(moves_sql.history, "a"))[-1].note == "gone"


async def test_without_its_latents_a_job_is_sampled_again_from_its_checkpoint(database: Database) -> None:
    await sampling(database)
    assert await database.run(claims_sql.keep_checkpoint, "a", "s", step=8)
    await finish(database, "s", now=103.0, device_s=1.0)
    await claim(database, Stage.DECODING, now=104.0, a="d")
    job = await go_back(database, "d", 105.0, Usage())
    assert job is not None and job == await get(database, "a")
    assert (job.state, job.stage, job.attempt, job.remakes) == (JobState.QUEUED, Stage.SAMPLING, 1, 1)
    assert (job.step, job.checkpoint_step) == (8, 8)
    assert job.progress == overall_progress(Stage.SAMPLING, 8, 20)


async def test_giving_back_costs_no_attempt(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, a="t1")
    job = await database.run(claims_sql.give_back, "a", "t1", now=101.0, note="no replica")
    assert job is not None and (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert job == await get(database, "a")


async def test_a_lapsed_lease_can_do_nothing(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, a="old")
    await retry(database, "old", now=101.0, used=Usage())
    await claim(database, Stage.ENCODING, now=102.0, a="new")
    before = await get(database, "a")
    used = Usage(5, 5.0)
    assert not await database.run(claims_sql.renew, "a", "old", expires_at=999.0, step=5, progress=0.5, used=used)
    assert not await database.run(claims_sql.keep_checkpoint, "a", "old", step=5)
    assert await finish(database, "old", now=103.0, device_s=1.0) is None
    assert await retry(database, "old", now=103.0, used=used, deaths=1, died_at=0.1) is None
    assert await database.run(ends_sql.park, "a", "old", now=103.0, step=5, used=used, note="") is None
    assert await database.run(claims_sql.give_back, "a", "old", now=103.0, note="") is None
    assert await go_back(database, "old", 103.0, used) is None
    assert await database.run(ends_sql.fail, "a", "old", now=103.0, error=JobError("x", "y"), used=Usage()) is None
    assert await get(database, "a") == before


async def test_renewing_keeps_progress_and_counts_what_was_spent(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, a="t")
    assert await database.run(claims_sql.renew, "a", "t", expires_at=500.0, step=7, progress=0.4, used=Usage(7, 1.0))
    assert await database.run(claims_sql.renew, "a", "t", expires_at=501.0, step=9, progress=0.5, used=Usage(2, 0.5))
    job = await get(database, "a")
    assert (job.lease_expires_at, job.step, job.progress) == (501.0, 9, 0.5)
    assert (job.steps_run, job.device_s) == (9, 1.5)


async def test_two_registries_lose_nothing_of_what_either_counts(postgres_uri: str) -> None:
    with fresh_database(postgres_uri) as url:
        one, other = Database(url), Database(url)
        await sampling(one)
        counted = threading.Event()

        def renew_and_wait_for_the_other(connection: Connection) -> None:
            assert claims_sql.renew(connection, "a", "s", expires_at=200.0, step=5, progress=0.1, used=Usage(5, 0.5))
            counted.set()
            while not connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                pass

        renewed = asyncio.create_task(one.run(renew_and_wait_for_the_other))
        assert await asyncio.to_thread(counted.wait, 60)
        parked = await other.run(ends_sql.park, "a", "s", now=103.0, step=7, used=Usage(2, 0.25), note="")
        await renewed
        assert parked is not None and parked == await get(one, "a")
        assert (parked.steps_run, parked.device_s) == (7, 1.0)
        one.close()
        other.close()


async def test_a_failed_job_tells_why(database: Database) -> None:
    await insert(database, "a")
    await claim(database, Stage.ENCODING, a="t")
    error = JobError("prompt_too_long", "too long")
    job = await database.run(ends_sql.fail, "a", "t", now=101.0, error=error, used=Usage(3, 0.5))
    assert job is not None and job == await get(database, "a")
    assert (job.state, job.error, job.completed_at, job.lease) == (JobState.FAILED, error, 101.0, None)
    assert (job.steps_run, job.device_s) == (3, 0.5)
    assert await database.run(overview_sql.count_live) == {}


async def test_a_cancelled_job_is_nobodys_and_stays_so(database: Database) -> None:
    await sampling(database)
    cancelled = await database.run(cancellation_sql.cancel, "a", now=103.0)
    assert cancelled is not None and cancelled == await get(database, "a")
    assert (cancelled.state, cancelled.lease, cancelled.completed_at) == (JobState.CANCELLED, None, 103.0)
    assert await database.run(cancellation_sql.cancel, "a", now=104.0) == cancelled
    assert not await database.run(claims_sql.renew, "a", "s", expires_at=140.0, step=1, progress=0.1, used=Usage())
    assert await database.run(cancellation_sql.cancel, "b", now=104.0) is None


async def test_leases_are_told_apart_by_owner(database: Database) -> None:
    await insert(database, "a", "b", "c", "d")
    await claim(database, Stage.ENCODING, owner="here", a="t1", c="t2")
    await claim(database, Stage.ENCODING, owner="there", b="t3")
    leased = await database.run(overview_sql.leased_jobs)
    assert [(job.id, job.lease_owner) for job in leased] == [("a", "here"), ("b", "there"), ("c", "here")]


async def test_waiting_and_running_jobs_are_counted(database: Database) -> None:
    await sampling(database)
    await insert(database, "b", "c", "d")
    await claim(database, Stage.ENCODING, b="t")
    await database.run(cancellation_sql.cancel, "d", now=1.0)
    assert await database.run(overview_sql.queued_ids) == [("c", Stage.ENCODING)]
    assert await database.run(overview_sql.count_live) == {
        (JobState.QUEUED, Stage.ENCODING): 1,
        (JobState.ENCODING, Stage.ENCODING): 1,
        (JobState.SAMPLING, Stage.SAMPLING): 1,
    }


async def test_many_jobs_are_found_at_once_in_the_order_asked_for(database: Database) -> None:
    ids = [f"job{n}" for n in range(1200)]
    await asyncio.gather(*(accept(database, Submission(job_id, "mochi-1", SPEC), 1.0) for job_id in ids))
    asked = [*reversed(ids), "unknown"]
    assert [job.id for job in await database.run(get_jobs, asked)] == ids[::-1]
    assert len(await claim_all(database, Stage.ENCODING, dict.fromkeys(ids, "t"))) == 1200


async def test_those_completed_last_are_found(database: Database) -> None:
    ids = ["a", "b", "c", "d"]
    await insert(database, *ids)
    for n, job_id in enumerate(ids[:3]):
        await end_job(database, job_id, JobState.COMPLETED, at=200.0 - n)
    await database.run(cancellation_sql.cancel, "d", now=500.0)
    assert [job.id for job in await database.run(overview_sql.last_completed, limit=2)] == ["a", "b"]
