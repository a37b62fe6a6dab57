"""Stands before a real object store, and passes requests on, refuses them, or takes them and says nothing."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 65536


class StoreGate:
    """A server on `port` before the one on `store_port`. It runs on a loop of its own; its methods are for any thread.

    A change of what it does breaks the connections that there are.
    """

    def __init__(self, store_port: int) -> None:
        self._store_port = store_port
        self._answer: bytes | None = None
        self._silent = False
        self._loop = asyncio.new_event_loop()
        self._talks: set[asyncio.Task[None]] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._talk, _LOOPBACK, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.taken = 0  # connections since the last change
        self._thread = threading.Thread(target=self._loop.run_forever, name="store gate")
        self._thread.start()

    def pass_on(self) -> None:
        self._change(None, silent=False)

    def refuse(self, status: int, code: str) -> None:
        """Answer every request with an error of S3's."""
        body = f"<Error><Code>{code}</Code><Message>refused at the gate</Message></Error>"
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        self._change(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(), silent=False)

    def be_silent(self) -> None:
        """Take every request and never answer."""
        self._change(None, silent=True)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _change(self, answer: bytes | None, silent: bool) -> None:
        async def change() -> None:
            self._answer, self._silent = answer, silent
            self.taken = 0
            await self._break_off()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result()

    async def _end(self) -> None:
        self._server.close()
        await self._break_off()

    async def _break_off(self) -> None:
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self.taken += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._talks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._silent:
            await _pump(reader, None)
        elif self._answer is not None:
            head = await reader.readuntil(b"\r\n\r\n")
            # To a HEAD without its body.
            end = self._answer.index(b"\r\n\r\n") + 4 if head.startswith(b"HEAD ") else len(self._answer)
            writer.write(self._answer[:end])
            writer.write_eof()
            await _pump(reader, None)
        else:
            store_reader, store_writer = await asyncio.open_connection(_LOOPBACK, self._store_port)
            try:
                up = asyncio.create_task(_pump(reader, store_writer))
                down = asyncio.create_task(_pump(store_reader, writer))
                try:
                    await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    up.cancel()
                    down.cancel()
                    await asyncio.gather(up, down, return_exceptions=True)
            finally:
                store_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
    """Pass on all bytes, or drop them, until the sender closes."""
    while data := await reader.read(_CHUNK_BYTES):
        if writer is not None:
            writer.write(data)
            await writer.drain()


@contextmanager
def store_gate(store_port: int) -> Iterator[StoreGate]:
    gate = StoreGate(store_port)
    try:
        yield gate
    finally:
        gate.close()
