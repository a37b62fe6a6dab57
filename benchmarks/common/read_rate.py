"""How fast one server answers one GET, asked by a client that costs next to nothing beside it."""

import asyncio
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop


def read_rate(url: str, callers: int, seconds: float) -> float:
    """Answers a second to GET `url`. Each caller keeps one connection and sends its next request after each answer.

    It takes `seconds`, or longer where a caller has had no answer by then: a rate counts at least one of each.

    Raises:
        RuntimeError: an answer that is not 200, or a connection that the server closed.
    """
    return uvloop.run(_read_rate(url, callers, seconds))


async def _read_rate(url: str, callers: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    split = urlsplit(url)
    request = f"GET {split.path} HTTP/1.1\r\nHost: {split.netloc}\r\n\r\n".encode()
    host = split.hostname or ""
    port = split.port or 80
    opened = [await loop.create_connection(lambda: _Caller(request), host, port) for _ in range(callers)]
    made = [caller for _, caller in opened]
    begun = time.perf_counter()
    for caller in made:
        caller.ask()
    await asyncio.wait([caller.broken for caller in made], timeout=seconds)
    await asyncio.wait([caller.answered for caller in made])
    took = time.perf_counter() - begun
    for transport, caller in opened:
        if caller.broken.done():
            caller.broken.result()
        caller.broken.cancel()
        transport.close()
    return sum(caller.answers for caller in made) / took


class _Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes) -> None:
        self.answers = 0  # that were 200
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the first answer came, of whatever kind."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has an exception once another answer came."""
        self._request = request
        self._write: Callable[[bytes], None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def ask(self) -> None:
        assert self._write is not None
        self._write(self._request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self._write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of an answer."""
        self._note_answer()
        status = self._parser.get_status_code()
        if status != 200:
            self._break(f"an answer was {status}, not 200")
            return
        self.answers += 1
        if not self.broken.done():
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._break("the server closed a connection")

    def _note_answer(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def _break(self, what: str) -> None:
        self._note_answer()  # none will come
        if not self.broken.done():
            self.broken.set_exception(RuntimeError(what))
