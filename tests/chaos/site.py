"""Where a run takes place: a server on parts that can be broken from outside."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.job_records import JobRecords, read_only_sqlite
from tests.chaos.parts import Leftovers
from tests.support.servers.server import Server, start_server, stop_whole, wait_ready

BACK_S = 300.0
LOOK_S = 0.1
STOPPED_S = 45.0
REPLACED_S = 30.0

Strike = Callable[[random.Random], Awaitable[None]]


@dataclass
class Site:
    """A server, what its database says, and what can be done to it.

    strikes: by the name of the fault; each returns when its harm is over, so that the part can be on its way back.
    """

    server: Server
    folder: Path
    environ: dict[str, str]
    records: JobRecords
    strikes: dict[str, Strike] = field(default_factory=dict)
    leftovers: list[Leftovers] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def api_key(self) -> None:
        return None

    async def kill(self, part: str) -> None:
        """kill -9 to every process of the part, once it is there."""
        await self._until_there(part)
        doomed = [psutil.Process(pid) for pid in self.server.pids(part)]
        below = [child for process in doomed for child in process.children(recursive=True)]
        self.leftovers.append(Leftovers([*doomed, *below]))
        self.server.kill(part)

    async def _until_there(self, part: str) -> None:
        deadline = time.monotonic() + BACK_S
        while not self.server.pids(part):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the {part} was not back within {BACK_S:g} s")
            await asyncio.sleep(LOOK_S)

    async def stop(self, part: str) -> None:
        """Have every process of the part stand still (SIGSTOP) until it is replaced, 45 s at most; then it may go on.

        Raises TimeoutError when it was not ended within half a minute.
        """
        await self._until_there(part)
        stopped = [psutil.Process(pid) for pid in self.server.pids(part)]
        self.leftovers.append(Leftovers([child for process in stopped for child in process.children(recursive=True)]))
        begun = time.monotonic()
        for process in stopped:
            process.suspend()
        while any(_lives(process) for process in stopped) and time.monotonic() < begun + STOPPED_S:
            await asyncio.sleep(LOOK_S)
        lasted_s = time.monotonic() - begun
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        if lasted_s > REPLACED_S:
            raise TimeoutError(f"the {part} stood still, and was not ended within {REPLACED_S:g} s")
        await self._until_there(part)

    async def restart(self, _rng: random.Random) -> None:
        """kill -9 to everything of the server at once, then start it on the same data and ports."""
        self.leftovers.append(Leftovers(self.server.descendants()))
        await asyncio.to_thread(self.server.kill_all)
        self.tidy()
        self.server = await asyncio.to_thread(start_server, self.folder, self.environ)
        await asyncio.to_thread(wait_ready, self.server)

    def tidy(self) -> None:
        """Remove what the killed could not."""
        while self.leftovers:
            self.leftovers.pop().remove()


def _lives(process: psutil.Process) -> bool:
    """Whether it has not ended; its number may be another's by now."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def open_site(folder: Path, environ: dict[str, str], records: JobRecords | None = None) -> Iterator[Site]:
    """Start a server in `folder` with this environment; at the end, stop the one that then runs.

    records: of its database, without it the SQLite in its data folder.
    Raises AssertionError when the server does not end well.
    """
    server = start_server(folder, environ)
    url = read_only_sqlite(str(server.data / "jobs.db"))
    site = Site(server, folder, environ, records or JobRecords(url))
    try:
        wait_ready(server)
        yield site
    finally:
        try:
            if site.server.process.poll() is None:
                stop_whole(site.server)
        finally:
            site.tidy()
