"""Keeps the registry's feed whole: what it begins with, tenants and keys, and whether another registry works too."""

import asyncio
import time

from deployments.errors import RegistryUnavailableError
from serve_app import access_store, job_store
from serve_app.board import Board, log
from serve_app.exposure import AccessMode, no_keys_notice
from serve_app.feed import FIRST
from serve_app.meta_store import beat, other_registries

RECENT = 1000
EVERY_S = 1.0
# A registry whose last beat is older than this is gone. Others notice a new one within a round.
SILENT_S = 15.0
SETTLED_ROUNDS = 3


class FeedUpkeep:
    """Runs in the background of the registry.

    Args:
        alone: no other registry can be on this database.
        mode: whether requests need keys.
    """

    def __init__(self, board: Board, alone: bool, mode: AccessMode = "auto") -> None:
        self._board = board
        self._mode: AccessMode = mode
        self._alone = alone
        self._rounds = 0
        self.begun = asyncio.Event()

    async def run(self) -> None:
        """For ever; a database that is away now is there again later."""
        self._board.feed.whole = self._alone
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
        """The newest jobs; the live ones come with the dispatcher's first look."""
        board = self._board
        page = await board.database.run(job_store.list_jobs, RECENT)
        for job in reversed(page.jobs):
            board.feed.moved(job)
        last = page.jobs[-1] if page.has_more else None
        board.feed.horizon = max(board.feed.horizon, FIRST if last is None else (last.created_at, last.id))
        await self._read_access()
        self.begun.set()

    async def _round(self) -> None:
        if await self._board.database.run(access_store.access_version) != self._board.access.version:
            await self._read_access()
        if not self._alone:
            await self._look_for_others()

    async def _read_access(self) -> None:
        self._board.access = await self._board.database.run(access_store.load_access)
        self._board.feed.tell_access(self._board.access)
        if (notice := no_keys_notice(self._mode, self._board.access)) is not None:
            log.warning(notice)

    async def _look_for_others(self) -> None:
        board, now = self._board, time.time()
        await board.database.run(beat, board.owner, now)
        others = await board.database.run(other_registries, board.owner, now - SILENT_S)
        self._rounds += 1
        whole = not others and self._rounds > SETTLED_ROUNDS
        if whole != board.feed.whole:
            told = "none is left" if whole else f"reads ask SQL while there is {', '.join(others) or 'one perhaps'}"
            log.info(f"other registries on this database: {told}")
        board.feed.whole = whole
