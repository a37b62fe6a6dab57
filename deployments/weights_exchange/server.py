"""Serves chunks to other nodes: HTTP ranges, for those who know the token."""

import asyncio
import hmac
import threading
from collections.abc import Callable
from concurrent.futures import Future

from aiohttp import web

from deployments.storage.fetching.errands import Place

Locate = Callable[[str, int], Place | None]
"""Where a chunk of a state lies that may be served now."""
START_S = 10.0
_REFUSED = "a token of this cluster is needed"


class ChunkServer:
    """A server in a thread of its own, until `close` or the end of the process.

    Args:
        host: address of this node that the others reach; a free port is taken.
        token: that is asked for now; none is right while there is none.
    """

    def __init__(self, host: str, locate: Locate, token: Callable[[], str | None]) -> None:
        self._host = host
        self._locate = locate
        self._token = token
        self._loop = asyncio.new_event_loop()
        self._end: asyncio.Event | None = None
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="weights-server", daemon=True)
        self._thread.start()
        self.address = f"{host}:{started.result(START_S)}"

    def close(self) -> None:
        if self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(START_S)

    def _run(self, started: "Future[int]") -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    async def _serve(self, started: "Future[int]") -> None:
        self._end = asyncio.Event()
        app = web.Application()
        app.add_routes([web.get("/chunks/{index:[0-9]{1,9}}", self._chunk)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        try:
            await runner.setup()
            await web.TCPSite(runner, self._host, 0).start()
            started.set_result(runner.addresses[0][1])
        except Exception as error:
            started.set_exception(error)
            return
        try:
            await self._end.wait()
        finally:
            await runner.cleanup()

    async def _chunk(self, request: web.Request) -> web.StreamResponse:
        if not self._is_allowed(request.headers.get("Authorization", "")):
            raise web.HTTPUnauthorized(text=_REFUSED)
        place = self._locate(request.query.get("state", ""), int(request.match_info["index"]))
        if place is None or not place.path.is_file():
            raise web.HTTPNotFound
        # A draft has its full length before its bytes are there: nothing but the chunk may be read of it.
        if request.http_range != slice(place.offset, place.offset + place.length, 1):
            raise web.HTTPRequestRangeNotSatisfiable
        return web.FileResponse(place.path)

    def _is_allowed(self, header: str) -> bool:
        token = self._token()
        return token is not None and hmac.compare_digest(header.encode(), f"Bearer {token}".encode())
