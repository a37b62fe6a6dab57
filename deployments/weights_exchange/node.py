"""A node in the exchange: it fetches as the directory says, and serves what it has. Without the directory it asks the
bucket alone."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.storage.fetching.errands import BucketDesk, Chunk, Desk, Errand, Exchange, PeerError, Place
from deployments.weights_exchange.directory import Answer, Ask, Directory, DirectoryAwayError, Join
from deployments.weights_exchange.peers import Peers
from deployments.weights_exchange.server import ChunkServer

HEARTBEAT_S = 10.0
AT_ONCE = 8  # chunks that are on their way to a node
_logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class _State:
    """What this node has of a state of a model."""

    chunk_count: int
    have: dict[int, str] = field(default_factory=dict)
    locate: Callable[[int], Place | None] = lambda index: None


class NodeExchange(Exchange):
    """The exchange as this process takes part in it, until `close`.

    Args:
        host: address of this node that the others reach.
        heartbeat_s: between two words to the directory.
    """

    def __init__(
        self, directory: Directory, host: str, peers: Peers | None = None, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._directory = directory
        self._peers = peers or Peers()
        self._token: str | None = None
        self._states: dict[str, _State] = {}
        self._desks: dict[str, NodeDesk] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._server = ChunkServer(host, self._locate, lambda: self._token)
        self.address = self._server.address
        self._heartbeat_s = heartbeat_s
        self._heart = threading.Thread(target=self._beat, name="weights-heartbeat", daemon=True)
        self._heart.start()

    def desk(self, state: str, chunk_count: int, wanted: Sequence[int]) -> Desk:
        try:
            self.join(state, wanted, chunk_count)
        except DirectoryAwayError as error:
            _logger.warning("the directory of weights does not answer (%s): the bucket is asked alone", error)
            return BucketDesk(wanted)
        desk = NodeDesk(self, state, wanted)
        with self._lock:
            self._desks[state] = desk
        return desk

    def offer(
        self, state: str, chunk_count: int, have: Mapping[int, str], locate: Callable[[int], Place | None]
    ) -> None:
        with self._lock:
            held = self._states.setdefault(state, _State(chunk_count))
            held.have |= have
            held.locate = locate
            fetching = state in self._desks
        if not fetching and have:
            try:
                self.join(state, (), chunk_count)
            except DirectoryAwayError as error:
                _logger.warning("the directory of weights does not answer (%s): it is told later what is here", error)

    def close(self) -> None:
        self._end.set()
        self._heart.join()
        self._server.close()

    def join(self, state: str, wanted: Sequence[int], chunk_count: int | None = None) -> None:
        """Tell the directory what this node wants and has. Raises DirectoryAwayError."""
        with self._lock:
            held = self._states.setdefault(state, _State(chunk_count or 0))
            have = dict(held.have)
        join = Join(state, held.chunk_count, self.address, tuple(wanted), have)
        self._token = self._directory.join(join).token

    def ask(self, state: str, done: Mapping[int, str], failed: Mapping[int, bool], count: int) -> Answer:
        """Raises DirectoryAwayError."""
        answer = self._directory.ask(Ask(state, self.address, done, failed, count))
        self._token = answer.token
        return answer

    def add(self, state: str, chunk: int, sha256: str) -> None:
        """From now on this chunk is served."""
        with self._lock:
            self._states[state].have[chunk] = sha256

    def read(self, address: str, state: str, chunk: Chunk) -> Iterator[bytes]:
        return self._peers.read(address, self._token or "", state, chunk)

    def leave_desk(self, state: str) -> None:
        with self._lock:
            self._desks.pop(state, None)

    def _locate(self, state: str, index: int) -> Place | None:
        with self._lock:
            held = self._states.get(state)
            locate = held.locate if held is not None and index in held.have else None
        return None if locate is None else locate(index)

    def _beat(self) -> None:
        """Tell the directory that this node is there. If it was started anew, a desk tells it what is wanted."""
        while not self._end.wait(self._heartbeat_s):
            with self._lock:
                states = {state: state in self._desks for state in self._states}
            for state, fetching in states.items():
                try:
                    if not self.ask(state, {}, {}, 0).known and not fetching:
                        self.join(state, ())
                except DirectoryAwayError as error:
                    _logger.info("the directory of weights does not answer: %s", error)


class NodeDesk(Desk):
    """Errands as the directory gives them; once it is away, all that is left comes from the bucket."""

    def __init__(self, node: NodeExchange, state: str, wanted: Sequence[int]) -> None:
        self._node = node
        self._state = state
        self._left = set(wanted)  # not on the disk
        self._ready: list[Errand] = []
        self._taken: set[int] = set()
        self._done: dict[int, str] = {}
        self._failed: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._pause = threading.Event()
        self._alone: BucketDesk | None = None

    def take(self) -> Errand | None:
        while not self._pause.is_set():
            wait_s = 0.0
            with self._lock:
                if self._alone is None and not self._ready and self._free:
                    wait_s = self._ask()
                if self._alone is not None:
                    return self._alone.take()
                if self._ready:
                    errand = self._ready.pop()
                    self._taken.add(errand.chunk)
                    return errand
                if not self._free:
                    return None
            self._pause.wait(wait_s)
        return None

    def done(self, errand: Errand, sha256: str) -> None:
        self._node.add(self._state, errand.chunk, sha256)
        with self._lock:
            self._left.discard(errand.chunk)
            self._taken.discard(errand.chunk)
            self._done[errand.chunk] = sha256

    def failed(self, errand: Errand, lied: bool) -> None:
        with self._lock:
            self._taken.discard(errand.chunk)
            self._failed[errand.chunk] = lied
            if self._alone is not None:
                self._alone.failed(errand, lied)

    def read(self, errand: Errand, chunk: Chunk) -> Iterator[bytes]:
        if errand.peer is None:
            raise PeerError("it is to come from the bucket")
        return self._node.read(errand.peer, self._state, chunk)

    def close(self) -> None:
        self._pause.set()
        self._node.leave_desk(self._state)
        with self._lock:
            if self._alone is None:
                self._ask(more=False)

    @property
    def _free(self) -> set[int]:
        """Wanted, and not on its way."""
        return self._left - self._taken

    def _ask(self, more: bool = True) -> float:
        """Tell what was done and fill what is ready; returns for how long to wait if that is nothing."""
        try:
            count = min(AT_ONCE - len(self._taken), len(self._free)) if more else 0
            answer = self._node.ask(self._state, self._done, self._failed, max(0, count))
            if not answer.known:
                self._node.join(self._state, tuple(self._free) if more else ())
                self._done, self._failed = {}, {}
                return 0.0
        except DirectoryAwayError as error:
            _logger.warning("the directory of weights does not answer (%s): the bucket is asked alone", error)
            self._alone = BucketDesk(self._free)
            return 0.0
        self._done, self._failed = {}, {}
        self._ready += [Errand(grant.chunk, grant.source, grant.sha256) for grant in answer.grants]
        return answer.wait_s
