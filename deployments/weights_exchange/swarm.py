"""Who fetches which chunk of a model from whom, so that each is read from the bucket about once. Pure.

A chunk that no node has goes to one node from the bucket; every other takes it from nodes that have it, the rarest
first, and serves it from then on. What a node says of chunks it had from the bucket is what others are held to.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SAMPLED = 12  # chunks that are looked at for one grant: enough to find rare ones
SAMPLED_HOLDERS = 4  # of each


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds of a swarm; times in seconds."""

    bucket_reads: int = 16  # at once, of all nodes
    uploads: int = 8  # at once, of one node
    gone_s: float = 30  # without a word, after which a node counts as gone
    grant_s: float = 180  # after which a chunk that is not reported goes to another node
    pause_s: float = 30  # for which a node that did not answer another one is asked for nothing
    complaints: int = 3  # of other bytes, after which the one who complains is the damaged one


@dataclass(frozen=True, slots=True)
class Grant:
    """A chunk that a node is to fetch now."""

    chunk: int
    source: str | None  # the node that has it; None: the bucket
    sha256: str | None  # as it came from the bucket; None if nobody said


@dataclass(slots=True)
class _Member:
    left: list[int]  # wanted and not granted
    seen: float
    has: set[int] = field(default_factory=set)
    granted: dict[int, tuple[str | None, float]] = field(default_factory=dict)  # source and time, by chunk
    uploads: int = 0
    paused_until: float = 0.0
    liar: bool = False
    accused: set[str] = field(default_factory=set)


class Swarm:
    """The nodes that have or want one state of a model.

    Args:
        chunk_count: of all its files.
        random_source: for choices between equals.
    """

    def __init__(self, chunk_count: int, rules: Rules, random_source: random.Random) -> None:
        self._rules = rules
        self._random = random_source
        self._members: dict[str, _Member] = {}
        self._holders: list[list[str]] = [[] for _ in range(chunk_count)]
        self._hashes: dict[int, str] = {}
        self._untouched: dict[int, None] = dict.fromkeys(range(chunk_count))  # neither held nor on its way
        self._bucket_reads = 0
        self._swept = 0.0

    @property
    def is_empty(self) -> bool:
        return not self._members

    def knows(self, node: str) -> bool:
        return node in self._members

    def join(self, node: str, wanted: Iterable[int], have: Mapping[int, str], now: float) -> None:
        """Take in a node, or what it has now instead of what it had.

        Args:
            have: SHA-256 by chunk.
        """
        self._remove(node)
        self._members[node] = _Member([chunk for chunk in wanted if chunk not in have], now)
        for chunk, sha256 in have.items():
            self._hold(node, chunk, sha256, sure=False)

    def hear(self, node: str, now: float) -> None:
        """Note that a node is there; others that were not heard of for long are forgotten."""
        self._members[node].seen = now
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Forget the nodes that were not heard of for long, and the grants that nobody reported; once a second."""
        if now - self._swept < 1:
            return
        self._swept = now
        for node in [name for name, each in self._members.items() if now - each.seen > self._rules.gone_s]:
            self._remove(node)
        for node, member in self._members.items():
            late = [chunk for chunk, (_, since) in member.granted.items() if now - since > self._rules.grant_s]
            for chunk in late:
                self.failed(node, chunk, lied=False, now=now)

    def done(self, node: str, chunk: int, sha256: str) -> None:
        """A node has fetched a chunk, perhaps one whose grant is over."""
        member = self._members[node]
        source = self._take_back(node, chunk) if chunk in member.granted else ""
        if chunk in member.left:
            member.left.remove(chunk)
        if not self._is_damaged(member):
            self._hold(node, chunk, sha256, sure=source is None)

    def failed(self, node: str, chunk: int, lied: bool, now: float) -> None:
        """A node did not get a chunk where it was sent to. lied: other bytes came than it was told."""
        member = self._members[node]
        if chunk not in member.left and chunk not in member.has:
            member.left.append(chunk)
        if chunk not in member.granted:
            return
        source = self._take_back(node, chunk)
        if source is not None and source in self._members:
            self._members[source].paused_until = now + self._rules.pause_s
            if lied and not self._is_damaged(member):
                self._accuse(member, source)
        if not self._usable(chunk, now):
            self._untouched[chunk] = None

    def grants(self, node: str, count: int, now: float) -> list[Grant]:
        """What a node is to fetch next, at most so many; nothing while all that is left is on its way to others."""
        found = []
        for _ in range(count):
            if (grant := self._grant(node, now)) is None:
                break
            found.append(grant)
        return found

    def _grant(self, node: str, now: float) -> Grant | None:
        member = self._members[node]
        if not member.left:
            return None
        if self._is_damaged(member):
            self._untouched.pop(member.left[0], None)
            return self._granted(node, member.left[0], None, now)
        if self._may_read_bucket(member):
            wanted = set(member.left)
            if (chunk := next((each for each in self._untouched if each in wanted), None)) is not None:
                del self._untouched[chunk]
                return self._granted(node, chunk, None, now)
        sampled = self._random.sample(member.left, min(SAMPLED, len(member.left)))
        for chunk in sorted(sampled, key=lambda each: len(self._holders[each])):
            if (source := self._source(chunk, now)) is not None:
                return self._granted(node, chunk, source, now)
        if self._may_read_bucket(member):
            for chunk in sampled:
                if not self._usable(chunk, now):
                    return self._granted(node, chunk, None, now)
        return None

    def _may_read_bucket(self, member: _Member) -> bool:
        """So that all nodes that began together read a part, and none waits for one."""
        if self._bucket_reads >= self._rules.bucket_reads:
            return False
        own = sum(source is None for source, _ in member.granted.values())
        return own < max(1, self._rules.bucket_reads // len(self._members))

    def _source(self, chunk: int, now: float) -> str | None:
        """The node that has a chunk and has least to do, of some; None if none has room."""
        holders, best = self._holders[chunk], None
        if len(holders) > SAMPLED_HOLDERS:
            holders = [holders[int(self._random.random() * len(holders))] for _ in range(SAMPLED_HOLDERS)]
        for each in holders:
            if self._can_serve(self._members[each], now):
                best = each if best is None or self._members[each].uploads < self._members[best].uploads else best
        return best

    def _can_serve(self, member: _Member, now: float) -> bool:
        return not member.liar and member.uploads < self._rules.uploads and member.paused_until <= now

    def _granted(self, node: str, chunk: int, source: str | None, now: float) -> Grant:
        member = self._members[node]
        member.left.remove(chunk)
        member.granted[chunk] = source, now
        if source is None:
            self._bucket_reads += 1
        else:
            self._members[source].uploads += 1
        return Grant(chunk, source, None if source is None else self._hashes.get(chunk))

    def _take_back(self, node: str, chunk: int) -> str | None:
        """End a grant; returns its source."""
        source, _ = self._members[node].granted.pop(chunk)
        if source is None:
            self._bucket_reads -= 1
        elif source in self._members:
            self._members[source].uploads = max(0, self._members[source].uploads - 1)  # it may have come anew
        return source

    def _hold(self, node: str, chunk: int, sha256: str, sure: bool) -> None:
        """Note that a node has a chunk. sure: it came from the bucket just now: whoever has other bytes is wrong."""
        known = self._hashes.setdefault(chunk, sha256)
        if known != sha256:
            if not sure:
                return
            for other in self._holders[chunk]:
                self._members[other].has.discard(chunk)
            self._holders[chunk].clear()
            self._hashes[chunk] = sha256
        if chunk not in self._members[node].has:
            self._members[node].has.add(chunk)
            self._holders[chunk].append(node)
        self._untouched.pop(chunk, None)

    def _usable(self, chunk: int, now: float) -> bool:
        """Whether a node that may be asked has a chunk, or one is fetching it from the bucket."""
        holders = (self._members[holder] for holder in self._holders[chunk])
        if any(not holder.liar and holder.paused_until <= now for holder in holders):
            return True
        return any(member.granted.get(chunk, ("", 0))[0] is None for member in self._members.values())

    def _is_damaged(self, member: _Member) -> bool:
        return len(member.accused) >= self._rules.complaints

    def _accuse(self, member: _Member, source: str) -> None:
        """Who sent other bytes serves nobody any more, unless the accuser finds everybody's bytes wrong.

        Then it serves nothing itself, and asks the bucket alone.
        """
        member.accused.add(source)
        damaged = self._is_damaged(member)
        member.liar = member.liar or damaged
        for each in member.accused & self._members.keys() if damaged else {source}:
            self._members[each].liar = not damaged

    def _remove(self, node: str) -> None:
        if node not in self._members:
            return
        on_their_way = list(self._members[node].granted)
        for chunk in on_their_way:
            self._take_back(node, chunk)
        has = self._members.pop(node).has
        for chunk in has:
            self._holders[chunk].remove(node)
        for chunk in {*has, *on_their_way}:
            if not self._holders[chunk] and not self._usable(chunk, 0):
                self._untouched[chunk] = None
