"""Keeps the feed complete: its first jobs, tenants and keys, and whether another registry is there."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.background import run_forever, wait_for
from serve_app.access.exposure import no_keys_notice
from serve_app.access.tenants import AccessTable
from serve_app.config import AccessMode
from serve_app.database import access as access_sql
from serve_app.database.jobs.listing import newest_jobs
from serve_app.database.meta import read_heartbeats, write_heartbeat
from serve_app.feed.publisher import FIRST
from serve_app.feed.read_leases import Presence
from serve_app.registry.state import RegistryState, log

NEWEST_JOBS = 1000
# Heartbeats of registries that ended are kept this long: far more than the clocks of two machines
# can be apart.
FORGET_S = 86_400.0


class FeedMaintenance:
    """Runs in the background of the registry.

    Args:
        state: shared with the other parts of the registry.
        mode: whether requests need keys.
        newest_jobs: the feed begins with so many of the newest jobs.
    """

    def __init__(self, state: RegistryState, mode: AccessMode = "auto", newest_jobs: int = NEWEST_JOBS) -> None:
        self.ready = asyncio.Event()  # set when the feed has the newest jobs, and tenants and keys are known
        self._state = state
        self._mode: AccessMode = mode
        self._newest_jobs = newest_jobs
        self._timing = state.timing.presence
        self._others = OtherRegistries(self._timing.silent_s)
        self._beat_at = -math.inf
        self._reading_access = asyncio.Lock()
        self._access_changed = asyncio.Event()

    async def run(self) -> None:
        """Keep the feed complete for ever."""
        await run_forever(self._round, "keeping the feed of the jobs", log, self._timing.beat_every_s)

    async def _round(self) -> float:
        """Returns the seconds until the next round."""
        state = self._state
        if not self.ready.is_set():
            if not state.alone:
                await self._beat()
            await self._read_newest()  # the live jobs come with the dispatcher's first look
            await self._read_access()
            self.ready.set()
        await self.refresh_access()
        if not state.alone:
            await self._look_for_others()
        return self._timing.beat_every_s

    async def refresh_access(self) -> int:
        """Read the tenants and keys again if they have changed; gives their version, as it was or will be published."""
        async with self._reading_access:  # or an older reading could be taken over after a newer one
            if await self._state.database.run(access_sql.access_version) != self._state.access.version:
                await self._read_access()
            return self._state.access.version

    async def access_after(self, version: int) -> AccessTable | None:
        """The tenants and keys once they are others than those of this version; None if they are not for a while."""
        if self._state.access.version == version:
            self._access_changed.clear()
            await wait_for(self._access_changed, self._state.timing.feed.hold_s)
        return None if self._state.access.version == version else self._state.access

    async def _read_newest(self) -> None:
        newest, first = await self._state.database.run(newest_jobs, limit=self._newest_jobs)
        horizon = FIRST if first is None else (first.created_at, first.id)
        self._state.feed.restart(newest, horizon)

    async def _read_access(self) -> None:
        self._state.access = await self._state.database.run(access_sql.load_access)
        self._state.feed.publish_access(self._state.access)
        self._access_changed.set()
        if (notice := no_keys_notice(self._mode, self._state.access)) is not None:
            log.warning(notice)

    async def _look_for_others(self) -> None:
        leases = self._state.feed.leases
        before = leases.presence
        looked_at = time.monotonic()
        others = self._others.alive(await self._beat(), looked_at)
        if leases.look(others):
            if before is not Presence.EXCLUSIVE:
                log.info("other registries on this database: none is left")
                await self._read_newest()  # what the others did was not published here
            leases.hold_exclusive(looked_at)
        elif before is Presence.EXCLUSIVE:
            names = ", ".join(others) or "one perhaps"
            log.info(f"other registries on this database: reads ask SQL while there is {names}")

    async def _beat(self) -> dict[str, float]:
        """Write the heartbeat of this registry; returns those of the others by owner."""
        state = self._state
        unix_now = state.unix_time()
        own, others = await state.database.run(read_heartbeats, state.owner, since=unix_now - FORGET_S)
        await state.database.run(write_heartbeat, state.owner, now=unix_now)
        now = time.monotonic()
        # The row was written by a life before if this one has written none yet.
        silent_s = min(now - self._beat_at, math.inf if own is None else abs(unix_now - own))
        self._beat_at = now
        state.feed.leases.beat(now, silent_s)
        return others


@dataclass(slots=True)
class OtherRegistries:
    """Which registries are there: those whose heartbeat changes.

    The time is this machine's monotonic clock, from when a heartbeat was first seen. The heartbeats
    are times too, of the clocks of other machines: they are only compared with each other.
    """

    silent_s: float
    _heartbeats: dict[str, tuple[float, float]] = field(default_factory=dict)  # owner: (heartbeat, first seen at)

    def alive(self, heartbeats: Mapping[str, float], now: float) -> list[str]:
        """The owners whose heartbeats, read just now, have changed within `silent_s`."""
        before = self._heartbeats
        self._heartbeats = {
            owner: before[owner] if owner in before and before[owner][0] == heartbeat else (heartbeat, now)
            for owner, heartbeat in heartbeats.items()
        }
        return sorted(owner for owner, (_, since) in self._heartbeats.items() if now - since < self.silent_s)
