"""One fault's run: jobs in flight, strikes, the wait for all, and what became of each."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any, Protocol
from uuid import uuid4

from tests.chaos.client import Client
from tests.chaos.clips import difference
from tests.chaos.job_records import JobRecords
from tests.chaos.judge import COMPLETED, Ended, Outcome
from tests.chaos.mix import MIX
from tests.chaos.site import Site
from tests.support.metrics.page import page_sums

# Sent just before each strike, so that it also hits requests on their way.
LATE = 5
# One job in so many is sent beside: some end before the first strike.
SPARE = 10
CHECK_S = 300.0
SUMS_S = 60.0
ROUNDING = 1e-6  # of sums of seconds, which are added in another order
UNACCOUNTED = "mochi_serve_jobs_unaccounted"
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Blow:
    """pause_s: seconds after the blow before has ended; the first one counts from the last job's acceptance."""

    pause_s: float
    strike: Callable[[], Awaitable[None]]


class Place(Protocol):
    """Where jobs are sent, the key for it if it asks for one, and what its database says."""

    @property
    def url(self) -> str: ...

    @property
    def api_key(self) -> str | None: ...

    @property
    def records(self) -> JobRecords: ...


@dataclass
class Round:
    """Sends the jobs, strikes, waits.

    references: the undisturbed clip of each request of the mix.
    limit_s: for all of it. What is not final then counts as lost.
    """

    site: Place
    references: Sequence[bytes]
    limit_s: float
    mix: Sequence[dict[str, Any]] = MIX
    accepted: dict[str, int] = field(default_factory=dict)
    struck: int = 0
    in_flight: int = 0
    sent: int = 0
    _deleted: dict[str, float] = field(default_factory=dict)  # of jobs that were deleted before

    async def run(self, name: str, jobs: int, blows: Sequence[Blow]) -> Outcome:
        begun = time.monotonic()
        before = await asyncio.to_thread(self.site.records.ids)
        self._deleted = await asyncio.to_thread(self._beyond_the_jobs)
        client = Client(self.site.url, uuid4().hex, begun + self.limit_s, self.site.api_key)
        try:
            await self._submit(client, jobs + jobs // SPARE)
            await self._strike_all(client, blows)
            await client.wait(self.accepted)
            seconds = time.monotonic() - begun
            return await self._judged(name, client, before, seconds)
        finally:
            await client.close()

    async def _submit(self, client: Client, count: int) -> None:
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        ids = await asyncio.gather(*(client.submit(number, self.mix[number % len(self.mix)]) for number in numbers))
        self.accepted |= {
            job_id: n % len(self.mix) for job_id, n in zip(ids, numbers, strict=True) if job_id is not None
        }

    async def _strike_all(self, client: Client, blows: Sequence[Blow]) -> None:
        """Strike, and each time hit some jobs: a few more are sent if all have ended."""
        for blow in blows:
            await asyncio.sleep(blow.pause_s)
            live = await asyncio.to_thread(self.site.records.live)
            self.in_flight = self.in_flight or live
            if not live:
                await self._submit(client, LATE)
            late = asyncio.create_task(self._submit(client, LATE))
            await asyncio.sleep(0)
            await blow.strike()
            self.struck += 1
            await late

    async def _judged(self, name: str, client: Client, before: set[str], seconds: float) -> Outcome:
        moves = await asyncio.to_thread(self.site.records.moves)
        checker = Client(self.site.url, "", time.monotonic() + CHECK_S, self.site.api_key)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(job_id: str, index: int) -> Ended:
            async with gate:
                return await self._ended(checker, job_id, index, moves.get(job_id, []))

        try:
            ended = await asyncio.gather(*(one(job_id, index) for job_id, index in self.accepted.items()))
        finally:
            await checker.close()
        unasked = set(moves) - before - set(self.accepted)
        return Outcome(
            name,
            self.sent,
            tuple(ended),
            self.struck,
            self.in_flight,
            seconds,
            tuple(client.refused),
            tuple(sorted(unasked)),
            dict(client.odd + checker.odd),
            dict(client.repeated + checker.repeated),
            await self._sums_apart(),
        )

    async def _sums_apart(self) -> dict[str, tuple[float, float]]:
        """What the metrics and the jobs' rows come to, where they differ, once what was reported last is written."""
        if self.site.api_key is not None:  # of a tenant that may not read the metrics
            return {}
        end = time.monotonic() + SUMS_S
        while True:
            beyond = await asyncio.to_thread(self._beyond_the_jobs)
            wanted = self._deleted | {UNACCOUNTED: 0.0}
            apart = {
                name: (beyond.get(name, nan), value)
                for name, value in wanted.items()
                if not abs(beyond.get(name, nan) - value) <= ROUNDING
            }
            if not apart or time.monotonic() > end:
                return apart
            await asyncio.sleep(1)

    def _beyond_the_jobs(self) -> dict[str, float]:
        """What the metrics say beyond the jobs' rows: what was deleted stays in them. Nothing without an answer."""
        page = {} if self.site.api_key is not None else page_sums(self.site.url)
        rows = self.site.records.sums() | {UNACCOUNTED: 0.0}
        return {name: page[name] - rows[name] for name in rows if name in page}

    async def _ended(self, client: Client, job_id: str, index: int, moves: Sequence[tuple[float, str, str]]) -> Ended:
        request = self.mix[index]
        video, clip = await client.fetch(job_id)
        apart = None
        if video is not None and video["state"] == COMPLETED:
            apart = "it cannot be downloaded"
            if clip is not None:
                apart = await asyncio.to_thread(difference, self.references[index], clip, bool(request["exact"]))
        return Ended(
            job_id,
            None if video is None else video["state"],
            request["num_inference_steps"],
            0 if video is None else video["steps_run"],
            sum(state == COMPLETED for _, state, _ in moves),
            apart,
            None if video is None or not video["error"] else f"{video['error']['code']}: {video['error']['message']}",
            tuple(f"{at - moves[0][0]:+9.3f} s  {state}  {note}".rstrip() for at, state, note in moves),
        )


async def make_references(
    url: str, limit_s: float, mix: Sequence[dict[str, Any]] = MIX, api_key: str | None = None
) -> list[bytes]:
    """The clip of each request of the mix, from a server that nothing happens to.

    Raises RuntimeError when the server does not make one of them.
    """
    client = Client(url, uuid4().hex, time.monotonic() + limit_s, api_key)
    try:
        ids = await asyncio.gather(*(client.submit(number, request) for number, request in enumerate(mix)))
        await client.wait(job_id for job_id in ids if job_id is not None)
        fetched = [await client.fetch(job_id) for job_id in ids if job_id is not None]
    finally:
        await client.close()
    made = [clip for _, clip in fetched if clip is not None]
    if len(made) < len(mix):
        states = Counter("unknown" if video is None else video["state"] for video, _ in fetched)
        told = {"states": dict(states), "refused": client.refused, "odd": dict(client.odd)}
        raise RuntimeError(f"undisturbed, {len(made)} of {len(mix)} videos were made: {told}")
    return made


def blows_of(site: Site, name: str, pauses: Sequence[float], rng: random.Random) -> list[Blow]:
    """The strikes of one fault at one site."""
    return [Blow(pause_s, lambda: site.strikes[name](rng)) for pause_s in pauses]
