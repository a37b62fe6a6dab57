"""Calls go in turn: tenants get equal parts, nobody is lost, and too many are refused."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.calls.fair_line import FairLine, LineFullError

MOST = 1000


async def settled() -> None:
    """Lets every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Calls:
    """Calls through a line, each of which ends when it is told to."""

    def __init__(self, line: FairLine) -> None:
        self.line = line
        self.order: list[str] = []
        self._ends: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, tenant: str, cost: int = 1) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(self._call(tenant, cost)))
        return self._tasks[-1]

    async def _call(self, tenant: str, cost: int) -> None:
        async with self.line.turn(tenant, cost):
            self.order.append(tenant)
            end = asyncio.Event()
            self._ends.append(end)
            await end.wait()

    async def end_one(self) -> None:
        self._ends.pop(0).set()
        await settled()

    async def end_all(self) -> None:
        await settled()
        while self._ends:
            await self.end_one()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_tenant_with_many_calls_takes_turns_with_one_with_few() -> None:
    calls = Calls(FairLine(MOST))
    for _ in range(6):
        calls.send("many")
    await settled()
    for _ in range(2):
        calls.send("few")
    await calls.end_all()
    # One is under way and one has a tag as small; then they take turns.
    assert "".join(tenant[0] for tenant in calls.order) == "mfmfmmmm"


async def test_turns_go_by_cost_and_not_by_number() -> None:
    calls = Calls(FairLine(MOST))
    for _ in range(4):
        calls.send("large", 30)
    for _ in range(12):
        calls.send("small", 10)
    await calls.end_all()
    for seen in range(4, len(calls.order)):
        count = Counter(calls.order[:seen])
        if count["large"] < 4 and count["small"] < 12:
            assert abs(30 * count["large"] - 10 * count["small"]) <= 40


async def test_who_was_idle_has_saved_nothing_up() -> None:
    calls = Calls(FairLine(MOST))
    for _ in range(20):
        calls.send("busy")
        await settled()
        await calls.end_one()
    for tenant in ("busy", "busy", "late", "late"):
        calls.send(tenant)
    await calls.end_all()
    assert calls.order[-4:] in (["busy", "late", "busy", "late"], ["busy", "late", "late", "busy"])


async def test_room_bounds_what_is_under_way() -> None:
    line = FairLine(MOST, room=25)
    calls = Calls(line)
    for _ in range(5):
        calls.send("a", 10)
    await settled()
    assert (line.under_way, line.waiting) == (20, 30)
    line.set_room(40)
    await settled()
    assert (line.under_way, line.waiting) == (40, 10)
    large = calls.send("b", 500)  # more than there is room for: it goes alone
    await settled()
    assert not large.done() and line.under_way == 40
    await calls.end_all()
    assert calls.order.count("b") == 1
    assert (line.under_way, line.waiting) == (0, 0)


async def test_too_much_is_refused_and_one_tenant_leaves_room_for_others() -> None:
    line = FairLine(100)
    line.check("a", 5000)  # nothing waits: it is let in
    calls = Calls(line)
    for _ in range(5):
        calls.send("a", 10)
    await settled()
    assert line.waiting == 40
    line.check("a", 10)
    with pytest.raises(LineFullError) as caught:
        line.check("a", 11)
    assert caught.value.ahead == 40
    line.check("b", 60)
    with pytest.raises(LineFullError):
        line.check("b", 61)
    await calls.end_all()


async def test_a_client_that_goes_away_leaves_no_trace() -> None:
    line = FairLine(MOST)
    calls = Calls(line)
    first, second, _ = calls.send("a"), calls.send("a"), calls.send("b")
    await settled()
    second.cancel()
    first.cancel()
    await calls.end_all()
    assert calls.order == ["a", "b"]
    assert (line.under_way, line.waiting) == (0, 0)


@given(st.data())
@settings(max_examples=60)
def test_every_call_has_its_turn_and_no_more_than_there_is_room_for_is_under_way(data: st.DataObject) -> None:
    async def play() -> None:
        room = data.draw(st.integers(5, 9))
        line = FairLine(MOST, room)
        calls = Calls(line)
        sent: list[asyncio.Task[None]] = []
        for what in data.draw(st.lists(st.sampled_from("abc-x"), max_size=25)):
            if what == "-" and line.under_way and calls._ends:
                await calls.end_one()
            elif what == "x" and sent:
                sent.pop().cancel()
            elif what in "abc":
                sent.append(calls.send(what, data.draw(st.integers(1, 5))))
            if data.draw(st.booleans()):
                await settled()
            assert line.under_way <= room
        await calls.end_all()
        assert (line.under_way, line.waiting) == (0, 0)

    asyncio.run(play())
