"""Nodes that fetch from each other over loopback, with a directory in this process."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3

from deployments.storage.fetching.errands import Chunk, PeerError, Place
from deployments.storage.models.bucket import FetchOptions, fetch_files
from deployments.storage.models.file_hashes import HashRecord
from deployments.weights_exchange.directory import Answer, Ask, Directory, DirectoryAwayError, Join, WeightsDirectory
from deployments.weights_exchange.node import NodeExchange
from deployments.weights_exchange.peers import Peers
from deployments.weights_exchange.server import ChunkServer
from tests.support.workers.memory_store import MemoryStore

CHUNK = 10_000
DATA = {"a.bin": os.urandom(25 * CHUNK + 7), "b.bin": os.urandom(5 * CHUNK), "empty": b""}
OPTIONS = FetchOptions(chunk_bytes=CHUNK, pauses_s=(0, 0))


class NearDirectory(Directory):
    """The actor's own class, called here."""

    def __init__(self) -> None:
        self.actor = WeightsDirectory()
        self.away = False
        self.asks = 0
        self._lock = threading.Lock()

    def join(self, join: Join) -> Answer:
        return self._call(lambda: asyncio.run(self.actor.join(join)))

    def ask(self, ask: Ask) -> Answer:
        return self._call(lambda: asyncio.run(self.actor.ask(ask)))

    def _call(self, call: "object") -> Answer:
        if self.away:
            raise DirectoryAwayError("it is away")
        with self._lock:
            self.asks += 1
            assert callable(call)
            answer = call()
            assert isinstance(answer, Answer)
            return answer


class CountingStore(MemoryStore):
    """Counts the ranges that are read."""

    def __init__(self) -> None:
        super().__init__(objects={f"m/{name}": data for name, data in DATA.items()})
        self.ranges: list[tuple[str, int]] = []

    def open_range(self, key: str, offset: int, length: int):  # type: ignore[no-untyped-def]
        self.ranges.append((key, offset))
        return super().open_range(key, offset, length)


class Nodes:
    """Nodes with folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = NearDirectory()
        self.store = CountingStore()
        self.made: list[NodeExchange] = []

    def start(self) -> NodeExchange:
        peers = Peers(connect_s=1, silence_s=1)
        self.made.append(NodeExchange(self.directory, "127.0.0.1", peers, heartbeat_s=0.05))
        return self.made[-1]

    def fetch(self, node: NodeExchange) -> Path:
        cache = self.folder / node.address
        options = replace(OPTIONS, exchange=node)
        return fetch_files("s3://b/m", self.store, "m", lambda names: names, cache, HashRecord(cache / "h"), options)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    for node in made.made:
        node.close()


def check(folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in DATA} == DATA
    assert not list(folder.rglob(".partial-*"))


def test_a_second_node_reads_nothing_from_the_bucket(nodes: Nodes) -> None:
    check(nodes.fetch(nodes.start()))
    assert len(nodes.store.ranges) == 31
    check(nodes.fetch(nodes.start()))
    assert len(nodes.store.ranges) == 31


def test_nodes_that_begin_together_read_each_chunk_about_once(nodes: Nodes) -> None:
    together = [nodes.start() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for folder in pool.map(nodes.fetch, together):
            check(folder)
    assert len(set(nodes.store.ranges)) == 31 and len(nodes.store.ranges) <= 40


def test_a_node_that_sends_other_bytes_is_dropped(nodes: Nodes) -> None:
    liar = nodes.start()
    folder = nodes.fetch(liar)
    (folder / "a.bin").write_bytes(bytes(len(DATA["a.bin"])))
    check(nodes.fetch(nodes.start()))
    assert len(nodes.store.ranges) > 31


def test_a_node_that_vanished_costs_reads_and_no_more(nodes: Nodes) -> None:
    gone = nodes.start()
    nodes.fetch(gone)
    gone.close()
    nodes.made.remove(gone)
    nodes.directory.actor = WeightsDirectory()
    asyncio.run(nodes.directory.actor.join(Join("other", 1, gone.address, (), {})))
    check(nodes.fetch(nodes.start()))


def test_without_the_directory_the_bucket_is_asked(nodes: Nodes) -> None:
    nodes.directory.away = True
    check(nodes.fetch(nodes.start()))
    nodes.directory.away = False
    second = nodes.start()
    check(nodes.fetch(second))


def test_a_directory_that_was_started_anew_is_told_again(nodes: Nodes) -> None:
    first = nodes.start()
    nodes.fetch(first)
    nodes.directory.actor = WeightsDirectory()
    asked = nodes.directory.asks
    while nodes.directory.asks < asked + 3:  # a heartbeat, which joins again
        threading.Event().wait(0.02)
    check(nodes.fetch(nodes.start()))
    assert len(nodes.store.ranges) == 31


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ChunkServer]:
    (tmp_path / "f").write_bytes(b"0123456789")
    places = {("s", 3): Place(tmp_path / "f", 2, 5)}
    server = ChunkServer("127.0.0.1", lambda state, index: places.get((state, index)), lambda: "right")
    yield server
    server.close()


CHUNK_3 = Chunk(index=3, name="f", offset=2, length=5, sha256=None)


def test_a_chunk_is_served_as_a_range_for_those_who_know_the_token(served: ChunkServer) -> None:
    assert b"".join(Peers().read(served.address, "right", "s", CHUNK_3)) == b"23456"
    for token in ("wrong", "", "rightt"):
        with pytest.raises(PeerError, match="answered 401"):
            list(Peers().read(served.address, token, "s", CHUNK_3))


@pytest.mark.parametrize(
    ("chunk", "status"),
    [(replace(CHUNK_3, index=4), 404), (replace(CHUNK_3, offset=0), 416), (replace(CHUNK_3, length=6), 416)],
)
def test_nothing_but_that_chunk_is_served(served: ChunkServer, chunk: Chunk, status: int) -> None:
    with pytest.raises(PeerError, match=f"answered {status}"):
        list(Peers().read(served.address, "right", "s", chunk))
    answer = urllib3.request(
        "GET", f"http://{served.address}/chunks/3?state=s", headers={"Authorization": "Bearer right"}
    )
    assert answer.status == 416  # the whole file


def test_a_node_that_takes_no_connection_is_told(served: ChunkServer) -> None:
    address = served.address
    served.close()
    with pytest.raises(PeerError, match=address):
        list(Peers(connect_s=1).read(address, "right", "s", CHUNK_3))
