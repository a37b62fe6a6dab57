"""Calls go to the least loaded device, away from one that fails, hangs or dies, and back to it when it works again."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.embedder.messages import AnsweredGroup, DeviceInfo
from deployments.errors import PermanentError
from deployments.proteins.alphabet import read_sequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Query
from serve_app.calls.breaker import BreakerRules, BreakerState
from serve_app.calls.device_table import TABLES
from serve_app.calls.devices import CallTiming, Devices
from serve_app.calls.router import LeastLoadedRouter
from serve_app.errors import ServiceUnavailableError
from tests.support.proteins.devices import FakeDevice, FakeHandle, alone, fake_devices
from tests.support.proteins.models import make_esm
from tests.support.waiting import until

LASTING = BreakerRules(failures=3, first_pause_s=600, longest_pause_s=600)  # no test sees its end
SHORT = BreakerRules(failures=3, first_pause_s=0.05, longest_pause_s=0.2)
NAME = "Embedder"
TIMING = CallTiming(answer_s=120, choice_s=0.2, describe_every_s=0.01, describe_s=0.1, silent_s=0.1)
SIZE = 12  # tokens of it
GROUP = (Query(read_sequence("MKTVRQERLK").tokens, layers=(-1,), poolings=("mean",)),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Esm2:
    return Esm2(make_esm(tmp_path_factory.mktemp("esm") / "model"))


class Fleet:
    """Devices, and the calls of them."""

    def __init__(self, model: Esm2, count: int, rules: BreakerRules = LASTING, timing: CallTiming = TIMING) -> None:
        self.fakes = fake_devices(model, count)
        self.handle = FakeHandle(NAME, self.fakes)
        self.devices: Devices[DeviceInfo] = Devices("proteins", NAME, lambda: self.handle, "answer", timing, rules)
        self._running = asyncio.create_task(self.devices.run())

    async def call(self, cost: int = 12) -> AnsweredGroup:
        answered: AnsweredGroup = await self.devices.call(cost, GROUP)
        return answered

    def state(self, fake: FakeDevice) -> BreakerState:
        return TABLES[NAME].state(fake.info.replica, time.monotonic())

    async def known(self, count: int) -> None:
        await until(lambda: len(self.devices.known) == count)

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


@pytest.fixture
async def fleet(model: Esm2) -> AsyncIterator[Fleet]:
    fleet = Fleet(model, 4)
    await fleet.known(4)
    yield fleet
    await fleet.stop()


async def test_calls_are_spread_by_what_they_cost(fleet: Fleet) -> None:
    """One device has a call of eight units under way: eight more of one unit each go to the others."""
    first, *others = fleet.fakes
    for fake in fleet.fakes:
        fake.hangs = True
    tasks = [asyncio.create_task(fleet.call(8))]
    await until(lambda: sum(len(fake.calls) for fake in fleet.fakes) == 1)
    tasks += [asyncio.create_task(fleet.call(1)) for _ in range(9)]
    await until(lambda: sum(len(fake.calls) for fake in fleet.fakes) == 10)
    assert [len(first.calls), *(len(fake.calls) for fake in others)] == [1, 3, 3, 3]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slow_one_holds_nobody_up(fleet: Fleet) -> None:
    """It has one call for as long as it takes; the others answer all the rest meanwhile."""
    slow = fleet.fakes[0]
    slow.hangs = True
    held = asyncio.create_task(fleet.call(1))
    await until(lambda: len(slow.calls) == 1)
    for _ in range(12):
        await fleet.call(1)
    assert not held.done() and len(slow.calls) == 1
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


@pytest.mark.parametrize(("ails", "failures"), [("fails", 1), ("hangs", 1), ("dead", 1)])
async def test_one_that_ails_gets_nothing_more_and_nobody_notices(model: Esm2, ails: str, failures: int) -> None:
    fleet = Fleet(model, 4, timing=replace(TIMING, answer_s=3 if ails == "hangs" else TIMING.answer_s))
    await fleet.known(4)
    sick = fleet.fakes[0]
    setattr(sick, ails, True)
    answers = await asyncio.gather(*(fleet.call() for _ in range(20)))
    assert all(isinstance(answer, AnsweredGroup) for answer in answers)
    assert failures <= len(sick.calls) < 20
    seen = len(sick.calls)
    await asyncio.gather(*(fleet.call() for _ in range(5)))
    assert len(sick.calls) == seen
    assert fleet.state(sick) is BreakerState.OPEN
    await fleet.stop()


async def test_where_all_fail_calls_are_refused_at_once(fleet: Fleet) -> None:
    for fake in fleet.fakes:
        fake.fails = True
    codes = set()
    for _ in range(12):
        with pytest.raises(ServiceUnavailableError) as caught:
            await fleet.call()
        assert int(caught.value.headers["Retry-After"]) > 0
        codes.add(caught.value.code)
    assert codes == {"device_failed", "no_device"}
    assert [len(fake.calls) for fake in fleet.fakes] == [1, 1, 1, 1]
    assert {fleet.state(fake) for fake in fleet.fakes} == {BreakerState.OPEN}


async def test_failures_that_are_one_devices_open_its_breaker(fleet: Fleet) -> None:
    """Other devices do what it did not."""
    sick = fleet.fakes[0]
    sick.chokes_on = SIZE
    for _ in range(10):
        await fleet.call()
    assert fleet.state(sick) is BreakerState.OPEN and len(sick.calls) == 3


async def test_a_call_that_no_device_can_do_shuts_none(fleet: Fleet) -> None:
    for fake in fleet.fakes:
        fake.chokes_on = SIZE
    for _ in range(10):
        with pytest.raises(ServiceUnavailableError) as caught:
            await fleet.call()
        assert caught.value.code == "device_failed"
    assert {fleet.state(fake) for fake in fleet.fakes} == {BreakerState.CLOSED}


async def test_one_that_works_again_is_found_out(model: Esm2) -> None:
    fleet = Fleet(model, 1, SHORT)
    await fleet.known(1)
    (only,) = fleet.fakes
    only.fails = True
    with pytest.raises(ServiceUnavailableError):
        await fleet.call()
    only.fails = False
    await until(lambda: fleet.state(only) is BreakerState.HALF_OPEN)
    await fleet.call()
    assert fleet.state(only) is BreakerState.CLOSED
    await fleet.stop()


async def test_one_alone_that_fails_once_is_tried_again(model: Esm2) -> None:
    fleet = Fleet(model, 1)
    await fleet.known(1)
    (only,) = fleet.fakes
    only.fails_next = 1
    await fleet.call()
    assert len(only.calls) == 2
    await fleet.stop()


async def test_what_a_device_refuses_is_the_answer_and_no_fault_of_it(fleet: Fleet) -> None:
    bad = (Query(GROUP[0].tokens, layers=(99,), poolings=("mean",)),)
    for _ in range(5):
        with pytest.raises(PermanentError) as caught:
            await fleet.devices.call(12, bad)
        assert caught.value.code == "layer_out_of_range"
    assert {fleet.state(fake) for fake in fleet.fakes} == {BreakerState.CLOSED}


async def test_one_with_a_problem_of_its_own_gets_nothing(model: Esm2) -> None:
    fleet = Fleet(model, 2)
    sick, well = fleet.fakes
    sick.info = fake_devices(model, 1, problem="the driver has lost the GPU")[0].info
    await until(lambda: any(one.info.problem for one in fleet.devices.known))
    await asyncio.gather(*(fleet.call() for _ in range(8)))
    assert (len(sick.calls), len(well.calls)) == (0, 8)
    await fleet.stop()


async def test_devices_that_end_are_forgotten_and_new_ones_are_found(fleet: Fleet, model: Esm2) -> None:
    gone = fleet.fakes[0]
    del fleet.handle.devices[gone.info.replica]
    await fleet.known(3)
    await asyncio.gather(*(fleet.call() for _ in range(6)))
    assert gone.calls == []
    for name in list(fleet.handle.devices):
        del fleet.handle.devices[name]
    await fleet.known(0)
    with pytest.raises(ServiceUnavailableError, match="takes anything now"):
        await fleet.call()
    fleet.handle.devices[gone.info.replica] = gone
    await fleet.known(1)
    await fleet.call()


async def test_a_client_that_goes_away_leaves_nothing_behind(fleet: Fleet) -> None:
    for fake in fleet.fakes:
        fake.hangs = True
    calls = [asyncio.create_task(fleet.call(100)) for _ in range(4)]
    await until(lambda: sum(len(fake.calls) for fake in fleet.fakes) == 4)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert {TABLES[NAME].device(fake.info.replica).in_flight for fake in fleet.fakes} == {0}
    assert {fleet.state(fake) for fake in fleet.fakes} == {BreakerState.CLOSED}


async def test_answers_are_the_models(fleet: Fleet, model: Esm2) -> None:
    answered = await fleet.call()
    wanted = alone(model, GROUP[0])
    assert (answered.answers[0].embeddings[-1, "mean"] == wanted.embeddings[-1, "mean"]).all()
    assert answered.device_s > 0


async def test_serves_router_ranks_by_the_table() -> None:
    table = Devices("proteins", "Ranked", lambda: None, "answer", TIMING)._table
    router = object.__new__(LeastLoadedRouter)
    router._deployment_id = SimpleNamespace(name="Ranked")
    candidates: list[Any] = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "abcd"]
    table.device("a").in_flight = 5
    table.device("b").problem = "lost"
    table.device("c").in_flight = 2
    ranks = await router.choose_replicas(candidates)
    assert [rank[0].replica_id.unique_id for rank in ranks] == ["d", "c", "a"]
    router._deployment_id = SimpleNamespace(name="nobody-calls-it-here")
    assert len(await router.choose_replicas(candidates)) == 4
