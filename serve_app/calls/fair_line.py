"""Who goes next of the calls that wait for a device: tenants get equal parts of it, however many calls each has sent.

Start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996): a call gets a start tag, the larger of the virtual time and
the finish tag of its tenant's call before it, and a finish tag that lies its cost behind; the smallest start tag goes
first, and the virtual time is that of the call that went last. A tenant that was idle begins at the virtual time, so it
saves nothing up.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class LineFullError(Exception):
    """No more calls may wait.

    Args:
        ahead: the cost of the calls that wait: of the tenant's own if they fill its part, else of all.
    """

    def __init__(self, ahead: int) -> None:
        super().__init__(f"calls of a cost of {ahead} wait")
        self.ahead = ahead


@dataclass(order=True, slots=True)
class _Waiting:
    start: float
    number: int  # the earlier one of two goes first
    cost: int = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)


class FairLine:
    """Of one HTTP replica. Costs are in tokens, or in whatever else all calls are measured in.

    Args:
        most_waiting: cost that may wait in all; one tenant may fill half of it.
        room: cost that may be under way at once, see `set_room`.
    """

    def __init__(self, most_waiting: int, room: int = 1) -> None:
        self._most_waiting = most_waiting
        self._room = room
        self._under_way = 0
        self._line: list[_Waiting] = []
        self._number = 0
        self._virtual_time = 0.0
        self._finish: dict[str, float] = {}  # tags, by tenant
        self._waiting: Counter[str] = Counter()  # cost, by tenant

    @property
    def waiting(self) -> int:
        """The cost of the calls that wait."""
        return self._waiting.total()

    @property
    def under_way(self) -> int:
        """The cost of the calls whose turn has come and that have not ended."""
        return self._under_way

    def set_room(self, room: int) -> None:
        """How much may be under way at once; one call always may, however much it costs."""
        self._room = room
        self._call_next()

    def check(self, tenant: str, cost: int) -> None:
        """Whether calls of this cost may wait, besides those that do.

        Raises:
            LineFullError: too much waits. Whoever comes to an empty line is let in, however much it brings.
        """
        own = self._waiting[tenant]
        if own and own + cost > self._most_waiting / 2:
            raise LineFullError(own)
        if self.waiting and self.waiting + cost > self._most_waiting:
            raise LineFullError(self.waiting)

    @asynccontextmanager
    async def turn(self, tenant: str, cost: int) -> AsyncIterator[None]:
        """Wait for the call's turn; within, it is under way."""
        waiting = self._enter(tenant, cost)
        try:
            self._call_next()
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._end(cost)
            raise
        finally:
            self._waiting[tenant] -= cost
            if self._waiting[tenant] <= 0:
                del self._waiting[tenant]
        try:
            yield
        finally:
            self._end(cost)

    def _enter(self, tenant: str, cost: int) -> _Waiting:
        start = max(self._virtual_time, self._finish.get(tenant, 0.0))
        self._finish[tenant] = start + cost
        self._number += 1
        waiting = _Waiting(start, self._number, cost, asyncio.get_running_loop().create_future())
        heapq.heappush(self._line, waiting)
        self._waiting[tenant] += cost
        return waiting

    def _end(self, cost: int) -> None:
        self._under_way -= cost
        self._call_next()

    def _call_next(self) -> None:
        while self._line:
            waiting = self._line[0]
            has_room = not self._under_way or self._under_way + waiting.cost <= self._room
            if not waiting.turn.done() and not has_room:
                break
            heapq.heappop(self._line)
            if waiting.turn.done():  # its client went away
                continue
            self._virtual_time = waiting.start
            self._under_way += waiting.cost
            waiting.turn.set_result(None)
        if not self._line:
            self._finish = {tenant: tag for tenant, tag in self._finish.items() if tag > self._virtual_time}
