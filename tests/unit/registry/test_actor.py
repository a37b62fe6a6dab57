"""What the ingress asks of the registry and the workers tell it."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from deployments.messages import (
    VIDEO_STAGES,
    Checkpointed,
    Directive,
    Failed,
    Finished,
    InputUnusable,
    Parked,
    Progress,
    ReplicaInfo,
    Report,
    Stage,
    Started,
)
from serve_app.access.secret_box import WebhookKey
from serve_app.config import DAY_S, JobSettings, RetentionSettings, SchedulingSettings, WebhookSettings
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from serve_app.errors import ReplicaDiedError, TooLargeError
from serve_app.jobs import JobState, Tier
from serve_app.registry.actor import JobRegistry
from serve_app.registry.timing import DispatchTiming, RegistryTiming
from tests.support.logs import begun_log
from tests.support.registry.world import SPEC, Call, Workers, World


async def test_a_job_goes_through_the_stages(world: World) -> None:
    await world.replicas()
    accepted = await world.submit("a")
    assert accepted.state is JobState.QUEUED
    for stage in VIDEO_STAGES:
        call = await world.workers.next()
        assert (call.task.stage, call.task.spec, call.task.attempt) == (stage, SPEC, 1)
        assert await world.report(call, Started("r", "cpu")) is Directive.CONTINUE
        await world.finish(call)
    done = await world.reaches("a", JobState.COMPLETED)
    assert done.seconds == {
        f"{stage}.{part}": s for stage in VIDEO_STAGES for part, s in (("work", 0.1), ("device", 0.2))
    }
    assert done.device_s == pytest.approx(0.6)


async def test_each_line_of_a_lease_has_its_ids(world: World) -> None:
    leases = []
    with begun_log("registry") as lines:
        await world.replicas()
        await world.submit("a", tenant="acme")
        for _ in VIDEO_STAGES:
            call = await world.workers.next()
            leases.append(call.task.lease)
            await world.report(call, Started("r", "cpu"))
            await world.finish(call)
        done = await world.reaches("a", JobState.COMPLETED)
    own = [line for line in lines() if line["message"].split()[0] in VIDEO_STAGES]
    assert [line["lease"] for line in own] == [lease for lease in leases for _ in ("on a replica", "done")]
    assert {(line["job"], line["tenant"], line["stage"]) for line in own} == {("a", "acme", "registry")}
    assert {line["trace_id"] for line in own} == {done.trace.trace_id}
    assert len({line["span_id"] for line in own}) == len(VIDEO_STAGES)
    assert all("job" not in line for line in lines() if "slots" in line["message"])


async def test_a_lost_attempt_is_told_with_its_lease(world: World) -> None:
    with begun_log("registry", "text") as lines:
        await world.replicas()
        await world.submit("a")
        call = await world.workers.next()
        await world.report(call, Started("r", "cpu"))
        call.ended.set_exception(ReplicaDiedError("r"))
        await world.next_after_loss()
    (line,) = [line for line in lines() if line["levelname"] == "WARNING"]
    assert line["message"].startswith("[a] encoding did not succeed (replica_died")
    assert (line["job"], line["lease"], line["terminal"]) == ("a", call.task.lease, True)


async def test_secrets_of_webhooks_are_sealed_at_the_start_and_opened_to_sign(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    database = Database(url)
    tenant = await database.run(access_sql.create_tenant, "acme", now=1.0)
    key = WebhookKey(file=tmp_path / "webhook-key")
    registry = JobRegistry(
        database_url=url,
        jobs=JobSettings(),
        scheduling=SchedulingSettings(),
        owner="one",
        send=Workers(),
        webhooks=WebhookSettings(),
        webhook_key=key,
    )
    while (kept := await database.run(access_sql.get_tenant, "acme")) == tenant:
        await asyncio.sleep(0.01)
    assert await registry.webhook_secret("acme") == tenant.webhook_secret
    own = await registry.webhook_secret("nobody")
    assert own.startswith("whsec_") and own != await database.run(access_sql.installation_webhook_secret)
    assert kept is not None and key.box().open(kept.webhook_secret, "acme") == tenant.webhook_secret
    await registry.close()
    database.close()


async def test_nothing_is_sent_before_a_replica_is_there(world: World) -> None:
    await world.submit("a")
    await asyncio.sleep(0)
    assert (await world.job("a")).state is JobState.QUEUED
    assert world.workers.sent.empty()
    await world.replicas()
    assert (await world.workers.next()).task.job_id == "a"


async def test_only_what_fits_the_open_slots_is_sent(world: World) -> None:
    await world.replicas(slots=2)
    for job_id in "abc":
        await world.submit(job_id)
    first, second = await world.workers.next(), await world.workers.next()
    await world.registry.health()
    assert world.workers.sent.empty()
    assert (await world.job("c")).state is JobState.QUEUED
    first.ended.set_exception(RuntimeError("killed"))
    third = await world.next_after_loss(slots=2)
    assert {c.task.job_id for c in (first, second)} == {"a", "b"}
    assert third.task.job_id in "abc"


async def test_progress_is_told_before_it_is_saved(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    await world.finish(await world.workers.next())
    call = await world.workers.next()
    await world.report(call, Progress(7, 20))
    job = await world.job("a")
    assert (job.state, job.step) == (JobState.SAMPLING, 7)
    assert 0 < job.progress < 1
    (listed,) = (await world.registry.list_jobs(10)).jobs
    assert listed == job


async def test_the_activity_is_told_from_memory_alone(world: World) -> None:
    await world.replicas()
    await world.submit("a", tenant="acme")
    await world.finish(await world.workers.next())
    call = await world.workers.next()
    await world.report(call, Progress(7, 20))
    await world.submit("b")
    await world.workers.next()
    await world.submit("c", tenant="acme", tier=Tier.BATCH)
    found = await world.registry.activity()
    assert [(one.job.id, one.job.step, one.step_s) for one in found.running] == [("a", 7, None), ("b", 0, None)]
    (waiting,) = found.waiting
    assert (waiting.stage, waiting.tier, waiting.tenant, waiting.count) == (Stage.ENCODING, Tier.BATCH, "acme", 1)
    assert [info.replica for info in found.replicas[Stage.SAMPLING]] == ["sampling-replica"]


async def test_an_input_that_cannot_be_used_sends_a_job_back_once_however_often_it_is_told(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    await world.finish(await world.workers.next())
    call = await world.workers.next()
    gone = InputUnusable("the embeddings are gone")
    assert await world.report(call, gone) is Directive.CONTINUE
    assert await world.report(call, gone) is Directive.STOP
    call.ended.set_result(None)
    again = await world.workers.next()
    assert (again.task.stage, again.task.attempt) == (Stage.ENCODING, 1)
    assert (await world.job("a")).remakes == 1
    moves = await world.registry.history("a")
    assert moves is not None and "encoding again: the embeddings are gone" in [move.note for move in moves]


async def test_the_pause_before_it_goes_on_outlives_the_registry(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings=JobSettings(retry_pause_s=1000, max_retry_pause_s=1000))
    world.start()
    await world.replicas()
    await world.submit("a")
    await world.finish(await world.workers.next())
    await world.report(await world.workers.next(), InputUnusable("another model's"))
    await world.restart()
    await world.replicas()
    await world.submit("b")
    assert (await world.workers.next()).task.job_id == "b", "a waits for an encoder too, and came first"
    assert (await world.job("a")).available_at > (await world.job("a")).created_at + 900
    await world.stop()


async def test_a_job_is_gone_at_the_second_that_it_expires(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", retention=RetentionSettings(completed_days=1, failed_days=None))
    world.start()
    await world.replicas()
    await world.submit("a")
    for _ in VIDEO_STAGES:
        await world.finish(await world.workers.next())
    await world.reaches("a", JobState.COMPLETED)
    world.clock_shift_s = DAY_S - 60
    assert await world.registry.get("a") is not None
    world.clock_shift_s = DAY_S + 60
    assert await world.registry.get("a") is None
    assert await world.registry.history("a") is None
    assert (await world.registry.list_jobs(10)).jobs == ()
    assert not await world.registry.delete("a", None)
    await world.stop()


async def test_a_dead_replica_costs_an_attempt_not_the_job(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    dead = await world.workers.next()
    dead.ended.set_exception(RuntimeError("killed"))
    again = await world.next_after_loss()
    assert (again.task.job_id, again.task.attempt, again.task.stage) == ("a", 2, Stage.ENCODING)
    assert again.task.lease != dead.task.lease
    assert await world.report(dead, Finished()) is Directive.STOP
    assert await world.report(again, Started("r", "cpu")) is Directive.CONTINUE


async def test_a_call_that_ends_without_a_report_is_tried_again(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    (await world.workers.next()).ended.set_result(None)
    assert (await world.workers.next()).task.attempt == 2


async def test_transient_failures_end_with_the_last_attempt(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    for attempt in (1, 2, 3):
        call = await world.workers.next()
        assert call.task.attempt == attempt
        await world.report(call, Failed("internal_error", "it broke", transient=True))
        call.ended.set_result(None)
    job = await world.reaches("a", JobState.FAILED)
    assert job.error is not None and job.error.code == "internal_error"
    assert "attempt 3 of 3" in job.error.message


async def test_an_outage_of_the_store_costs_no_attempt(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", timing=RegistryTiming(outage_pause_s=0.01))
    world.start()
    await world.replicas()
    await world.submit("a")
    for _ in range(5):
        call = await world.workers.next()
        assert call.task.attempt == 1
        await world.report(call, Failed("storage_unavailable", "no answer", transient=True))
        call.ended.set_result(None)
    assert (await world.workers.next()).task.attempt == 1
    await world.stop()


async def test_a_task_that_was_never_sent_does_not_hold_its_slot_for_a_lease(tmp_path: Path) -> None:
    settings = JobSettings(lease_s=3600, retry_pause_s=0.01)
    timing = RegistryTiming(dispatch=DispatchTiming(takeover_s=1.0))
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", settings, timing=timing)
    world.start()
    await world.replicas()
    await world.submit("a")
    await world.workers.next()
    await world.restart()
    again = await world.next_after_loss()
    assert (again.task.job_id, again.task.attempt) == ("a", 2)
    await world.stop()


async def test_a_permanent_failure_is_not_retried(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    call = await world.workers.next()
    await world.report(call, Failed("prompt_too_long", "40 tokens, at most 16", transient=False))
    job = await world.reaches("a", JobState.FAILED)
    assert (job.attempt, job.error and job.error.message) == (1, "40 tokens, at most 16")


async def test_no_replica_took_it_costs_no_attempt(world: World) -> None:
    world.workers.refuse = True
    await world.replicas()
    await world.submit("a")
    async with asyncio.timeout(300):
        while not any(move.note.startswith("no replica") for move in await world.registry.history("a") or []):
            await asyncio.sleep(0.01)
    world.workers.refuse = False
    assert (await world.workers.next()).task.attempt == 1


async def test_a_worker_goes_on_through_a_restart_of_the_registry(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    call = await world.workers.next()
    await world.restart()
    await world.registry.health()
    assert await world.report(call, Started("r", "cpu")) is Directive.CONTINUE
    await world.replicas()
    assert world.workers.sent.empty()
    assert await world.report(call, Finished()) is Directive.CONTINUE
    assert (await world.workers.next()).task.stage is Stage.SAMPLING


async def test_leases_of_a_stopped_server_lapse_at_the_next_start(world: World) -> None:
    await world.replicas()
    await world.submit("a")
    before = await world.workers.next()
    world.owner = "cluster-2"
    await world.restart()
    await world.replicas()
    again = await world.workers.next()
    assert (again.task.job_id, again.task.attempt) == ("a", 2)
    assert await world.report(before, Finished()) is Directive.STOP


async def test_a_silent_worker_loses_its_lease(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", JobSettings(lease_s=1.1, retry_pause_s=0.01))
    world.start()
    await world.replicas(slots=2)
    await world.submit("a")
    silent = await world.workers.next()
    again = await world.workers.next()
    assert (again.task.job_id, again.task.attempt) == ("a", 2)
    assert await world.report(silent, Progress(1, 2)) is Directive.STOP
    await world.stop()


async def test_submitting_twice_is_one_job(world: World) -> None:
    first = await world.submit("a")
    assert await world.submit("a") == first
    assert len((await world.registry.list_jobs(10)).jobs) == 1


async def test_health_counts_what_waits_and_runs(world: World) -> None:
    await world.replicas()
    for job_id in "abc":
        await world.submit(job_id)
    await world.workers.next()
    health = await world.registry.health()
    assert health.queue == {JobState.QUEUED: 2, JobState.ENCODING: 1}
    assert [r.replica for r in health.replicas[Stage.SAMPLING]] == ["sampling-replica"]


async def test_closing_leaves_no_task(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}")
    world.start()
    await world.replicas()
    await world.submit("a")
    await world.workers.next()
    await world.stop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*others)
    assert not others


async def sampling(world: World, job_id: str = "a") -> Call:
    """A job whose sampler has just begun."""
    await world.replicas()
    await world.submit(job_id)
    await world.finish(await world.workers.next())
    call = await world.workers.next()
    assert call.task.stage is Stage.SAMPLING
    await world.report(call, Started("sampling-replica", "cpu"))
    return call


async def test_a_parked_job_goes_on_where_it_was_without_an_attempt(world: World) -> None:
    call = await sampling(world)
    await world.report(call, Progress(12, 20, begun_at=0))
    await world.report(call, Parked(13, "room for another"))
    call.ended.set_result(None)
    again = await world.workers.next()
    assert (again.task.checkpoint_step, again.task.attempt, again.task.lease != call.task.lease) == (13, 1, True)
    await world.report(again, Progress(14, 20, begun_at=13))
    await world.finish(again)
    job = await world.job("a")
    assert (job.step, job.steps_run) == (20, 20)


async def test_a_lost_sampler_costs_the_steps_since_its_checkpoint(world: World) -> None:
    call = await sampling(world)
    await world.report(call, Progress(8, 20, begun_at=0))
    await world.report(call, Checkpointed(8))
    await world.report(call, Progress(11, 20, begun_at=0))
    call.ended.set_exception(RuntimeError("killed"))
    again = await world.next_after_loss()
    assert (again.task.checkpoint_step, again.task.attempt) == (8, 2)
    assert (await world.job("a")).step == 8
    await world.report(again, Progress(9, 20, begun_at=8))
    await world.finish(again)
    assert (await world.job("a")).steps_run == 23


async def test_steps_are_counted_once_through_a_restart_of_the_registry(world: World) -> None:
    call = await sampling(world)
    await world.report(call, Progress(8, 20, begun_at=0))
    await world.restart()
    await world.report(call, Progress(12, 20, begun_at=0))
    await world.report(call, Finished())
    assert (await world.job("a")).steps_run == 20


async def test_steps_are_counted_once_however_often_the_lease_is_saved(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", JobSettings(lease_s=1.1))
    world.start()
    call = await sampling(world)
    for done in (4, 8, 12):
        await asyncio.sleep(0.3)
        await world.report(call, Progress(done, 20, begun_at=0))
    await world.report(call, Parked(15, "asked"))
    assert (await world.job("a")).steps_run == 15
    await world.stop()


async def test_a_refused_checkpoint_is_seen_in_the_steps_run(world: World) -> None:
    call = await sampling(world)
    await world.report(call, Parked(10, "asked"))
    call.ended.set_result(None)
    again = await world.workers.next()
    await world.report(again, Progress(1, 20, begun_at=0))
    await world.finish(again)
    assert (await world.job("a")).steps_run == 30


async def test_parking_reaches_the_replica_at_once_and_by_its_reports(tmp_path: Path) -> None:
    # Only a directive ends the call that the replica holds open.
    world = World(f"sqlite:///{tmp_path / 'jobs.db'}", timing=RegistryTiming(directive_hold_s=1e6))
    world.start()
    call = await sampling(world)
    info = ReplicaInfo("sampling-replica", Stage.SAMPLING, 1, "cpu", "mochi-1")
    held = asyncio.create_task(world.registry.announce(info, wait=True))
    await asyncio.sleep(0)
    assert await world.registry.park("a")
    async with asyncio.timeout(300):
        assert await held == {call.task.lease: Directive.PARK}
    assert await world.report(call, Progress(3, 20)) is Directive.PARK
    assert not await world.registry.park("unknown")
    await world.stop()


async def test_a_cancelled_job_stops_its_worker_and_stays_cancelled(world: World) -> None:
    call = await sampling(world)
    job = await world.registry.cancel("a")
    assert job is not None and job.state is JobState.CANCELLED
    info = ReplicaInfo("sampling-replica", Stage.SAMPLING, 1, "cpu", "mochi-1")
    assert await world.registry.announce(info, wait=True) == {call.task.lease: Directive.STOP}
    assert await world.report(call, Progress(3, 20)) is Directive.STOP
    assert await world.report(call, Finished()) is Directive.STOP
    call.ended.set_result(None)
    again = await world.registry.cancel("a")
    assert again == await world.job("a")
    assert (again.state, again.error and again.error.code) == (JobState.CANCELLED, "cancelled")
    assert await world.registry.cancel("unknown") is None


async def test_a_waiting_job_can_be_cancelled(world: World) -> None:
    await world.submit("a")
    await world.registry.cancel("a")
    await world.replicas()
    await world.submit("b")
    assert (await world.workers.next()).task.job_id == "b"


async def test_reports_of_a_replica_are_answered_in_their_order(world: World) -> None:
    call = await sampling(world)
    reports = [Report("other", "none", Progress(1, 20)), Report("a", call.task.lease, Progress(2, 20, preview=b"x"))]
    assert await world.registry.report_all(reports) == [Directive.STOP, Directive.CONTINUE]
    assert await world.registry.preview("a") == b"x"
    assert await world.registry.preview("other") is None


async def announce_sampler(world: World, name: str, max_tokens: int | None) -> None:
    info = ReplicaInfo(name, Stage.SAMPLING, 0, "cpu", "mochi-1", max_tokens)
    await world.registry.announce(info, wait=False)


async def test_a_video_that_no_sampler_holds_is_refused_unwritten(world: World) -> None:
    tokens = 5 * 4 * 4
    await announce_sampler(world, "small", tokens - 1)
    with pytest.raises(TooLargeError) as caught:
        await world.submit("a")
    assert (caught.value.tokens, caught.value.max_tokens) == (tokens, tokens - 1)
    assert await world.registry.get("a") is None
    assert await world.registry.history("a") is None
    await announce_sampler(world, "large", tokens)
    assert (await world.submit("a")).state is JobState.QUEUED


async def test_an_accepted_video_stays_accepted_when_the_limit_is_known(world: World) -> None:
    accepted = await world.submit("a")
    await announce_sampler(world, "small", 1)
    assert await world.submit("a") == accepted


async def test_nothing_is_refused_while_a_sampler_does_not_know_its_memory(world: World) -> None:
    await announce_sampler(world, "small", 1)
    await announce_sampler(world, "starting", None)
    assert (await world.submit("a")).state is JobState.QUEUED
