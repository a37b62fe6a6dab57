"""The four sites: as a user starts it; on a store and a Postgres of one's own; on a small disk; under a moved clock."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from serve_app.local.preflight import LOOPBACK
from tests.chaos.job_records import JobRecords
from tests.chaos.parts import OutsideStore, SmallDisk, WallClock, small_disk, why_no_mounts
from tests.chaos.site import Site, Strike, open_site
from tests.support.servers.ports import free_block
from tests.support.servers.postgres import Postgres, fresh_database, running_postgres
from tests.support.servers.store_gate import StoreGate, store_gate

PARTS = ("sampler", "decoder", "encoder", "registry", "ingress", "controller")
HUNG = ("registry", "sampler", "store", "ingress", "decoder", "proxy", "encoder")
# Steps slow enough to be hit, checkpoints often enough to show that little is run twice.
PACE = {"MOCHI_SERVE__SAMPLING__CHECKPOINT_S": "1", "MOCHI_SERVE__SAMPLING__MIN_STEP_S": "0.02"}
STORE_AWAY_S = 20.0
REFUSED_S = 10.0
THROTTLED_S = 5.0
HEALTH_S = 30.0
POSTGRES_AWAY_S = (2.0, 6.0)
DISK_MB = 400
DISK_FULL_S = 10.0
FILL_AGAIN_S = 0.2
HOUR_S = 3600


class UnavailableError(Exception):
    """This machine cannot show the fault; the text says why."""


def own_environ(folder: Path) -> dict[str, str]:
    """Ray's session is below the folder, so that nothing is left behind whatever is killed."""
    return PACE | {"RAY_TMPDIR": str(folder)}


Open = Callable[[Path], AbstractContextManager[Site]]


@contextmanager
def plain(folder: Path) -> Iterator[Site]:
    """A server with its own store and SQLite."""
    with open_site(folder, own_environ(folder)) as site:
        site.strikes |= {part: _killing(site, part) for part in PARTS}
        site.strikes |= {"ray": site.restart, "hang": _hanging(site)}
        yield site


@contextmanager
def outside(folder: Path) -> Iterator[Site]:
    """A server on an object store and a Postgres that are not its own."""
    store = OutsideStore(folder / "store", free_block())
    try:
        store.start()
        asyncio.run(store.ready())
        # Not below a folder that is closed to others: run as root, Postgres has a user of its own.
        with (
            TemporaryDirectory(prefix="postgres") as data,
            running_postgres(Path(data)) as postgres,
            store_gate(store.port) as gate,
            fresh_database(postgres.uri) as url,
        ):
            environ = (
                own_environ(folder)
                | store.environ
                | {
                    "MOCHI_SERVE__DATABASE__URL": url,
                    "MOCHI_SERVE__STORAGE__ENDPOINT": f"{LOOPBACK}:{gate.port}",
                }
            )
            with open_site(folder, environ, JobRecords(url)) as site:
                site.strikes |= {
                    "storage": _store_away(store),
                    "store-says-no": _store_says_no(gate, site),
                    "postgres": _postgres_away(postgres),
                }
                yield site
    finally:
        store.kill()


@contextmanager
def on_small_disk(folder: Path) -> Iterator[Site]:
    """A server whose data folder is a small file system."""
    if why := why_no_mounts():
        raise UnavailableError(why)
    environ = own_environ(folder) | {"MOCHI_SERVE__MIN_FREE_DISK_MB": "100"}
    with small_disk(folder / "data", DISK_MB) as disk, open_site(folder, environ) as site:
        site.strikes["disk"] = _disk_full(disk)
        yield site


@contextmanager
def moved_clock(folder: Path) -> Iterator[Site]:
    """A server whose wall clock can be moved."""
    clock = WallClock(folder)
    with open_site(folder, own_environ(folder) | clock.environ) as site:
        site.strikes["clock"] = _clock_moves(clock)
        yield site


def _killing(site: Site, part: str) -> Strike:
    async def strike(_rng: random.Random) -> None:
        await site.kill(part)

    return strike


def _hanging(site: Site) -> Strike:
    """Stops one part after another."""
    parts = cycle(HUNG)

    async def strike(_rng: random.Random) -> None:
        await site.stop(next(parts))

    return strike


def _store_away(store: OutsideStore) -> Strike:
    async def strike(_rng: random.Random) -> None:
        await asyncio.to_thread(store.kill)
        await asyncio.sleep(STORE_AWAY_S)
        store.start()

    return strike


def _store_says_no(gate: StoreGate, site: Site) -> Strike:
    """Keys that the store does not know, then too many requests. Raises AssertionError when /health does not tell."""

    async def strike(_rng: random.Random) -> None:
        try:
            gate.refuse(403, "InvalidAccessKeyId")
            await asyncio.sleep(REFUSED_S)
            told = httpx.get(f"{site.server.url}/health", timeout=HEALTH_S)
            assert told.status_code == 503 and "refuses" in told.text, f"/health of a refused store: {told.text}"
            gate.refuse(429, "TooManyRequests")
            await asyncio.sleep(THROTTLED_S)
        finally:
            gate.pass_on()

    return strike


def _postgres_away(postgres: Postgres) -> Strike:
    async def strike(rng: random.Random) -> None:
        await asyncio.to_thread(postgres.kill)
        await asyncio.sleep(rng.uniform(*POSTGRES_AWAY_S))
        await asyncio.to_thread(postgres.start)

    return strike


def _disk_full(disk: SmallDisk) -> Strike:
    async def strike(_rng: random.Random) -> None:
        try:
            until = time.monotonic() + DISK_FULL_S
            while time.monotonic() < until:
                await asyncio.to_thread(disk.fill)
                await asyncio.sleep(FILL_AGAIN_S)
        finally:
            disk.free()

    return strike


def _clock_moves(clock: WallClock) -> Strike:
    """An hour forward, and the next time back again."""
    ahead = cycle((HOUR_S, 0))

    async def strike(_rng: random.Random) -> None:
        clock.set_ahead(next(ahead))

    return strike
