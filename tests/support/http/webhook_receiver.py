"""A real HTTP server on loopback that takes webhooks, as a client of the API would run it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it arrived."""

    path: str  # with the query, as it was sent
    headers: dict[str, str]  # their names in small letters
    body: bytes


Reply = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Receiver:
    """Answers each request by `reply`."""

    def __init__(self, reply: Reply | None) -> None:
        self.requests: list[ReceivedRequest] = []  # in the order of their arrival
        self.base = ""  # of its URLs: scheme, host and port
        self.open_requests = 0
        self.most_open_requests = 0
        self._reply = reply or accept
        self._arrived: asyncio.Queue[ReceivedRequest] = asyncio.Queue()

    def url(self, path: str = "/hook") -> str:
        return self.base + path

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    async def next(self) -> ReceivedRequest:
        """The next request, when it has arrived."""
        return await self._arrived.get()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = ReceivedRequest(request.path_qs, headers, await request.read())
        self.requests.append(received)
        self._arrived.put_nowait(received)
        self.open_requests += 1
        self.most_open_requests = max(self.most_open_requests, self.open_requests)
        try:
            return await self._reply(request)
        finally:
            self.open_requests -= 1


async def accept(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=204)


@asynccontextmanager
async def receiving(reply: Reply | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a free port. What it still has under way at the end is cancelled."""
    receiver = Receiver(reply)
    server = web.Server(receiver.handle)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.base = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
