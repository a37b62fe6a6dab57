import asyncio
from dataclasses import replace

import pytest

from deployments.messages import ReplicaInfo, Stage
from serve_app.jobs import Job, JobState, Usage
from serve_app.registry.leases import ForeignLeases, LeaseTable
from serve_app.registry.replicas import ReplicaTable
from tests.support.registry.world import SPEC

JOB = Job("job", "mochi-1", SPEC, JobState.SAMPLING, Stage.SAMPLING, 1, 0.0, lease="token", step=4)


def info(replica: str, stage: Stage = Stage.SAMPLING, slots: int = 1) -> ReplicaInfo:
    return ReplicaInfo(replica, stage, slots, "cpu", "mochi-1")


def test_a_lease_lives_by_its_renewals() -> None:
    table = LeaseTable(lease_s=30, saves_per_lease=4)
    lease = table.grant(JOB, 100)
    assert table.lapsed(129.9) == []
    table.renew(lease, 129.9)
    assert table.lapsed(130) == []
    assert table.lapsed(159.9) == [lease]


def test_only_the_newest_token_holds_a_job() -> None:
    table = LeaseTable(lease_s=30, saves_per_lease=4)
    old = table.grant(replace(JOB, lease="old"), 0)
    new = table.grant(replace(JOB, lease="new"), 1)
    assert table.find("job", "old") is None
    assert table.find("job", "new") is new
    table.remove(old)
    assert table.find("job", "new") is new
    table.remove(new)
    assert table.of_job("job") is None


def test_sql_is_told_a_few_times_a_lease() -> None:
    table = LeaseTable(lease_s=40, saves_per_lease=4)
    lease = table.grant(JOB, 0)
    assert not table.needs_saving(lease, 9.9)
    assert table.needs_saving(lease, 10)


def test_slots_are_those_of_replicas_that_still_announce_themselves() -> None:
    table = ReplicaTable(forget_s=10)
    assert table.announce(info("a", slots=2), 0)
    assert table.announce(info("b"), 5)
    assert not table.announce(info("b"), 9)
    assert table.announce(info("b", slots=0), 9)
    assert table.announce(info("b"), 9)
    assert table.slots(Stage.SAMPLING, 9) == 3
    assert table.slots(Stage.DECODING, 9) == 0
    assert table.slots(Stage.SAMPLING, 10) == 1
    table.prune(10)
    assert table.announce(info("a"), 11)
    table.forget("a")
    assert [r.replica for r in table.alive(Stage.SAMPLING, 11)] == ["b"]


async def test_what_was_used_is_saved_once() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).grant(JOB, 0)
    lease.report(7, 1.5)
    async with lease.saving() as used:
        assert used == Usage(3, 1.5)
    async with lease.saving() as used:
        assert used == Usage(0, 0.0)


async def test_what_could_not_be_saved_is_saved_the_next_time() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).grant(JOB, 0)
    lease.report(7, 1.5)
    with pytest.raises(ConnectionError):
        async with lease.saving():
            raise ConnectionError
    assert lease.current_job.steps_run == JOB.steps_run
    lease.report(8, 2.0)
    async with lease.saving() as used:
        assert used == Usage(4, 2.0)
    assert (lease.current_job.steps_run, lease.current_job.device_s) == (JOB.steps_run + 4, JOB.device_s + 2.0)


async def test_of_two_saves_at_once_the_second_has_what_the_first_could_not_save() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).grant(JOB, 0)
    lease.report(7, 1.5)
    begun, fails = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with lease.saving():
            begun.set()
            await fails.wait()
            raise ConnectionError

    async def second() -> Usage:
        async with lease.saving() as used:
            return used

    failing = asyncio.create_task(first())
    await begun.wait()
    lease.report(9, 2.0)
    saving = asyncio.create_task(second())
    await asyncio.sleep(0)
    fails.set()
    with pytest.raises(ConnectionError):
        await failing
    assert await saving == Usage(5, 2.0)


def test_a_report_that_comes_late_takes_nothing_back() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).grant(JOB, 0)
    lease.report(9, 2.0)
    lease.report(7, 1.5)
    assert (lease.step, lease.reported) == (9, Usage(9, 2.0))


async def test_steps_before_a_refused_checkpoint_are_run_again_and_saved_again() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).grant(replace(JOB, checkpoint_step=6), 0)
    assert lease.step == 6
    lease.begin_at(2)
    lease.report(5, 1.0)
    assert (lease.step, lease.learn()) == (5, Usage(3, 1.0))
    async with lease.saving() as used:
        assert used == Usage(3, 1.0)
    assert lease.current_job.steps_run == JOB.steps_run + 3


async def test_a_resumed_lease_counts_the_device_from_its_first_report() -> None:
    lease = LeaseTable(lease_s=30, saves_per_lease=4).resume(JOB, 0, patience_s=10)
    assert lease.deadline == 10
    async with lease.saving() as used:
        assert used == Usage()
    lease.report(6, 5.0)
    async with lease.saving() as used:
        assert used == Usage(2, 0.0)
    lease.report(7, 7.0)
    async with lease.saving() as used:
        assert used == Usage(1, 2.0)
    assert lease.learn() == Usage(1, 2.0)


def test_a_foreign_lease_lapses_when_it_is_not_renewed_whatever_the_clocks_say() -> None:
    watch = ForeignLeases(lease_s=30)
    far_past = replace(JOB, lease_expires_at=1.0)
    assert watch.lapsed([far_past], 100) == []
    assert watch.lapsed([far_past], 129) == []
    renewed = replace(JOB, lease_expires_at=2.0)
    assert watch.lapsed([renewed], 129.5) == []
    assert watch.lapsed([renewed], 159) == []
    assert watch.lapsed([renewed], 159.5) == [renewed]
    assert watch.lapsed([], 160) == []
    assert watch.lapsed([renewed], 161) == []
