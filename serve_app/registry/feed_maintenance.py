"""Keeps the registry's feed whole: what it begins with, tenants and keys, and whether another registry works too."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.errors import RegistryUnavailableError
from serve_app.access.exposure import no_keys_notice
from serve_app.config import AccessMode
from serve_app.database import access as access_sql
from serve_app.database.listing import list_jobs
from serve_app.database.meta import read_heartbeats, write_heartbeat
from serve_app.feed.publisher import FIRST, VALID_S
from serve_app.registry.state import RegistryState, log

RECENT = 1000
EVERY_S = 1.0
# A look at the beats of the others holds for this long; without a newer one, reads ask SQL.
WHOLE_S = 3 * EVERY_S
# A registry whose last beat did not change for this long is gone. One that was silent for half as long comes anew.
SILENT_S = 15.0
# Until all the others have noticed one that comes, and their followers do not answer from memory any more.
COMING_S = WHOLE_S + VALID_S
SETTLED_ROUNDS = 3
# Beats of registries that ended are kept this long: far more than the clocks of two machines can be apart.
FORGET_S = 86_400.0


class FeedMaintenance:
    """Runs in the background of the registry.

    Args:
        alone: no other registry can be on this database.
        mode: whether requests need keys.
    """

    def __init__(self, state: RegistryState, alone: bool, mode: AccessMode = "auto") -> None:
        self._state = state
        self._mode: AccessMode = mode
        self._alone = alone
        self._others = OtherBeats(SILENT_S)
        self._beat_at = -math.inf
        self._rounds = 0
        self._is_whole = alone
        self.begun = asyncio.Event()

    async def run(self) -> None:
        """For ever; a database that is away now is there again later."""
        if not self._alone:
            self._state.feed.whole_until = -math.inf
        while True:
            try:
                if not self.begun.is_set():
                    await self._begin()
                await self._round()
            except RegistryUnavailableError as error:
                log.warning(f"the feed of the jobs cannot be kept up now, it is tried again: {error}")
            except Exception:  # the outermost loop: a defect here must not end the registry
                log.exception("the feed of the jobs could not be kept up; it is tried again")
            await asyncio.sleep(EVERY_S)

    async def _begin(self) -> None:
        """The live jobs come with the dispatcher's first look."""
        if not self._alone:
            await self._beat()
        await self._read_newest()
        await self._read_access()
        self.begun.set()

    async def _read_newest(self) -> None:
        page = await self._state.database.run(list_jobs, limit=RECENT)
        last = page.jobs[-1] if page.has_more else None
        self._state.feed.restart(page.jobs[::-1], FIRST if last is None else (last.created_at, last.id))

    async def _round(self) -> None:
        if await self._state.database.run(access_sql.access_version) != self._state.access.version:
            await self._read_access()
        if not self._alone:
            await self._look_for_others()

    async def _read_access(self) -> None:
        self._state.access = await self._state.database.run(access_sql.load_access)
        self._state.feed.publish_access(self._state.access)
        if (notice := no_keys_notice(self._mode, self._state.access)) is not None:
            log.warning(notice)

    async def _look_for_others(self) -> None:
        feed, looked_at = self._state.feed, time.monotonic()
        others = self._others.alive(await self._beat(), looked_at)
        self._rounds += 1
        is_whole = not others and self._rounds > SETTLED_ROUNDS
        if is_whole != self._is_whole:
            told = "none is left" if is_whole else f"reads ask SQL while there is {', '.join(others) or 'one perhaps'}"
            log.info(f"other registries on this database: {told}")
        if is_whole and not self._is_whole:
            await self._read_newest()  # what the others did was not told here
        self._is_whole = is_whole
        feed.whole_until = looked_at + WHOLE_S if is_whole else -math.inf

    async def _beat(self) -> dict[str, float]:
        """Tell the others that this registry is there; returns their own beats by owner."""
        state, now = self._state, time.monotonic()
        own, others = await state.database.run(read_heartbeats, state.owner, since=time.time() - FORGET_S)
        await state.database.run(write_heartbeat, state.owner, now=time.time())
        # The second is of a life before.
        silent_s = min(now - self._beat_at, math.inf if own is None else abs(time.time() - own))
        self._beat_at = time.monotonic()
        if silent_s > SILENT_S / 2:  # the others may take it for gone
            self._rounds, state.feed.quiet_until = 0, self._beat_at + COMING_S
        return others


@dataclass(slots=True)
class OtherBeats:
    """Which registries are there: those whose beat changes.

    The time is this machine's own monotonic clock, from when a beat was first seen: the clocks of two machines, which
    the beats are taken from, are not compared.
    """

    silent_s: float
    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def alive(self, known: Mapping[str, float], now: float) -> list[str]:
        """The owners that have not been silent for `silent_s`, of those whose newest beats are `known` now."""
        before = self._seen
        self._seen = {
            owner: before[owner] if owner in before and before[owner][0] == at else (at, now)
            for owner, at in known.items()
        }
        return sorted(owner for owner, (_, since) in self._seen.items() if now - since < self.silent_s)
