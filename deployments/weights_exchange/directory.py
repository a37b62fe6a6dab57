"""The directory of who has what: a named actor that nodes ask what to fetch next."""

import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.weights_exchange.swarm import Grant, Rules, Swarm

ACTOR = "WeightsDirectory"
TOKEN_BYTES = 32
WAIT_S = 0.25  # before a node asks again that got nothing


@dataclass(frozen=True, slots=True)
class Join:
    """A node that wants or has chunks of a state of a model."""

    state: str
    chunk_count: int  # of all files
    address: str  # host:port of the node's server; unique
    wanted: tuple[int, ...]
    have: Mapping[int, str]  # SHA-256 by chunk


@dataclass(frozen=True, slots=True)
class Ask:
    """What a node has done since it asked last, and how many chunks it could fetch now."""

    state: str
    address: str
    done: Mapping[int, str]  # SHA-256 by chunk
    failed: Mapping[int, bool]  # by chunk: whether other bytes came than it was told
    count: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node is to fetch now."""

    known: bool  # false: the directory was started anew, and the node must join again
    token: str  # that a node asks others with, and is asked with
    grants: tuple[Grant, ...] = ()
    wait_s: float = WAIT_S  # before it asks again, if there are none


class Directory(Protocol):
    """The directory as a node sees it. Blocks. Raises DirectoryAwayError; each call may be repeated."""

    def join(self, join: Join) -> Answer: ...

    def ask(self, ask: Ask) -> Answer: ...


class DirectoryAwayError(Exception):
    """The directory did not answer."""


class WeightsDirectory:
    """All swarms of a cluster.

    Its token guards the nodes' servers: whoever may call this actor, for which Ray asks for the cluster's own token, is
    told it, and nobody else.
    """

    def __init__(self, rules: Rules = Rules(), clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._token = secrets.token_urlsafe(TOKEN_BYTES)
        self._swarms: dict[str, Swarm] = {}

    async def join(self, join: Join) -> Answer:
        self._drop_empty()
        swarm = self._swarms.get(join.state)
        if swarm is None:
            swarm = self._swarms[join.state] = Swarm(join.chunk_count, self._rules, random.Random())
        swarm.join(join.address, join.wanted, join.have, self._clock())
        return Answer(known=True, token=self._token)

    async def ask(self, ask: Ask) -> Answer:
        swarm, now = self._swarms.get(ask.state), self._clock()
        if swarm is None or not swarm.knows(ask.address):
            return Answer(known=False, token=self._token)
        swarm.hear(ask.address, now)
        for chunk, sha256 in ask.done.items():
            swarm.done(ask.address, chunk, sha256)
        for chunk, lied in ask.failed.items():
            swarm.failed(ask.address, chunk, lied, now)
        return Answer(known=True, token=self._token, grants=tuple(swarm.grants(ask.address, ask.count, now)))

    def _drop_empty(self) -> None:
        """Of a model that nobody fetches any more no node asks, either: its swarm is not swept by itself."""
        now = self._clock()
        for swarm in self._swarms.values():
            swarm.sweep(now)
        for state in [name for name, swarm in self._swarms.items() if swarm.is_empty]:
            del self._swarms[state]
