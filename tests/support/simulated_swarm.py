"""A swarm of nodes in simulated time: what the bucket and the directory are asked, and how long it takes."""

import heapq
import random
from dataclasses import dataclass

from deployments.weights_exchange.swarm import Grant, Rules, Swarm

WAIT_S = 0.25  # before a node asks again that got nothing


@dataclass(frozen=True, slots=True)
class Link:
    """Rates in chunks a second."""

    bucket: float  # for one node's reads together
    node: float  # of one node, each way


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it."""

    bucket_reads: int
    seconds: float  # until the last node had everything
    asks: int  # of the directory
    uploads: int  # of the busiest node
    ideal_s: float


def simulate(
    nodes: int,
    chunks: int,
    link: Link,
    rules: Rules = Rules(),
    seed: int = 0,
    dies: float = 0.0,
    lies: float = 0.0,
    spread_s: float = 0.0,
) -> Simulated:
    """Have nodes fetch all chunks.

    A transfer takes a fixed share of its ends' rates, that of one of as many as a node has at once.

    Args:
        dies: part of the nodes that vanish in the middle, without a word.
        lies: part of the nodes that send other bytes.
        spread_s: within which the nodes begin.
    """
    return _Simulation(nodes, chunks, link, rules, seed, dies, lies, spread_s).run()


def ideal_s(nodes: int, chunks: int, link: Link) -> float:
    """No schedule is faster: all comes out of the bucket once, and a node takes everything in at its own rate."""
    return chunks / min(link.bucket, link.node)


class _Simulation:
    def __init__(
        self,
        nodes: int,
        chunks: int,
        link: Link,
        rules: Rules,
        seed: int,
        dies: float,
        lies: float,
        spread_s: float,
    ) -> None:
        self._random = random.Random(seed)
        self._rules = rules
        self._chunks = chunks
        self._link = link
        self._ideal_s = ideal_s(nodes, chunks, link)
        self._swarm = Swarm(chunks, rules, random.Random(seed + 1))
        self._names = [f"node-{number}" for number in range(nodes)]
        dying = self._random.sample(self._names, int(dies * nodes))
        self._death = {name: spread_s + self._random.uniform(0.2, 1.5) * self._ideal_s for name in dying}
        living = [name for name in self._names if name not in self._death]
        self._liars = set(self._random.sample(living, int(lies * nodes)))
        self._has: dict[str, int] = dict.fromkeys(self._names, 0)
        self._flying: dict[str, int] = dict.fromkeys(self._names, 0)
        self._uploads: dict[str, int] = dict.fromkeys(self._names, 0)
        self._events: list[tuple[float, int, str, Grant | None]] = []
        self._count = self._reads = self._asks = 0
        for name in self._names:
            self._push(self._random.uniform(0, spread_s), name, None)
        self._joined: set[str] = set()

    def run(self) -> Simulated:
        now = 0.0
        living = [name for name in self._names if name not in self._death]
        while any(self._has[name] < self._chunks for name in living):
            now, _, name, grant = heapq.heappop(self._events)
            if now < self._death.get(name, float("inf")):
                self._step(now, name, grant)
        return Simulated(self._reads, now, self._asks, max(self._uploads.values()), self._ideal_s)

    def _step(self, now: float, name: str, grant: Grant | None) -> None:
        if name not in self._joined:
            self._joined.add(name)
            self._swarm.join(name, self._random.sample(range(self._chunks), self._chunks), {}, now)
        if not self._swarm.knows(name):
            return
        self._swarm.hear(name, now)
        if grant is not None:
            self._flying[name] -= 1
            self._report(now, name, grant)
        self._ask(now, name)

    def _report(self, now: float, name: str, grant: Grant) -> None:
        source = grant.source
        if source is not None and now >= self._death.get(source, float("inf")):
            self._swarm.failed(name, grant.chunk, lied=False, now=now)
        elif source in self._liars:
            self._swarm.failed(name, grant.chunk, lied=True, now=now)
        else:
            self._swarm.done(name, grant.chunk, f"hash of {grant.chunk}")
            self._has[name] += 1

    def _ask(self, now: float, name: str) -> None:
        self._asks += 1
        for grant in self._swarm.grants(name, self._rules.uploads - self._flying[name], now):
            self._flying[name] += 1
            if grant.source is None:
                self._reads += 1
                rate = min(self._link.bucket, self._link.node) / self._rules.uploads
            else:
                self._uploads[grant.source] += 1
                rate = self._link.node / self._rules.uploads
            self._push(now + 1 / rate, name, grant)
        # Who waits for others asks again; who has everything tells that it is there.
        if not self._flying[name]:
            self._push(now + (WAIT_S if self._has[name] < self._chunks else 10), name, None)

    def _push(self, when: float, name: str, grant: Grant | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, name, grant))
