"""The registry's side of the feed: what it publishes, so that a read costs no call.

A follower polls again and again with the cursor of the last batch, and gets what has changed since.
Its next poll says that it has taken in everything before; until its read lease ends (`read_leases`)
it answers reads from memory.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from deployments.background import wait_for
from serve_app.access.tenants import AccessTable
from serve_app.feed.read_leases import FeedTiming, ReadLeases
from serve_app.jobs import Job, Move, Place

MAX_ENDED = 2000

Key = tuple[float, str]  # (created_at, id): the order of a listing
FIRST: Key = (-math.inf, "")  # before every job


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a follower has come."""

    epoch: str = ""  # of the feed that gave it; another epoch has other numbers
    seq: int = 0  # the number of the last change
    places: int = 0  # the version of the places
    access: int = -1  # the version of the tenants and keys


@dataclass(frozen=True, slots=True)
class Change:
    """A job that is new or has changed."""

    job: Job  # as it is now
    moves: tuple[Move, ...]  # the newest of its history; the last one is number `job.moves`


@dataclass(frozen=True, slots=True)
class Batch:
    """The answer to a poll: what has changed since the follower's cursor."""

    cursor: Cursor  # to poll with next
    reset: bool  # what the follower knew before is void
    changes: tuple[Change, ...]  # the oldest first
    deleted: tuple[str, ...]  # ids of jobs
    places: Mapping[str, Place] | None  # of all jobs that wait or run, by id; None: as before
    access: AccessTable | None  # None: as before
    horizon: Key  # the follower knows all jobs that were created since then
    complete: bool  # False: another registry on the database may change jobs too, which is not published here


@dataclass(slots=True)
class _Entry:
    """The newest that is known of a job."""

    seq: int  # the number of its last change
    job: Job | None  # None: it was deleted
    moves: list[tuple[int, Move]]  # (the number it was published under, move), without a gap up to the newest, or empty

    def update(self, job: Job) -> None:
        moves_before = 0 if self.job is None else self.job.moves
        if job.moves > moves_before:
            # A move between was missed, or the job was read from SQL and comes without its last
            # move: a history with a gap is worth nothing.
            if job.moves > moves_before + 1 or job.last_move is None:
                self.moves = []
            if job.last_move is not None:
                self.moves.append((self.seq, job.last_move))
        self.job = job


class FeedPublisher:
    """The newest state of all live jobs and the last ended ones, in the order of the changes.

    Args:
        as_of_now: adds what the job's replica has reported since its last move.
        leases: who may answer reads from memory.
        timing: of polls and news.
        access: tenants and keys, if they are known already.
        max_ended: older ended jobs beyond this many are left to the database.
    """

    def __init__(
        self,
        as_of_now: Callable[[Job], Job] = lambda job: job,
        leases: ReadLeases | None = None,
        timing: FeedTiming = FeedTiming(),
        access: AccessTable | None = None,
        max_ended: int = MAX_ENDED,
    ) -> None:
        self.leases = leases or ReadLeases(timing)
        self.horizon: Key = FIRST  # all jobs that were created since then are in the feed
        self.access = access
        self._as_of_now = as_of_now
        self._timing = timing
        self._max_ended = max_ended
        self._epoch = uuid4().hex
        self._places: Mapping[str, Place] = {}
        self._places_version = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by the number of the last change
        self._ended: OrderedDict[str, None] = OrderedDict()  # ids of those that ended or were deleted, oldest first
        self._seq = 0  # the number of the last change
        self._announced_seq = 0  # the last change that polls were woken for
        self._forgotten_seq = 0  # the last change that is not here any more: an older cursor begins anew
        self._news = asyncio.Event()
        self._polled = asyncio.Event()
        self._wake_timer: asyncio.TimerHandle | None = None

    # What happens to jobs

    def publish(self, job: Job) -> None:
        """A job was accepted, has moved, or was read from SQL."""
        entry = self._entries.get(job.id)
        if entry is None:
            entry = self._entries[job.id] = _Entry(0, None, [])
        elif entry.job is None or entry.job.moves > job.moves:
            # What was read from SQL may be older than a write that ended meanwhile; a deleted job
            # does not come back.
            return
        self._number(job.id, entry)
        entry.update(job)
        if job.final:
            self._keep_ended(job.id)
        self._wake_soon()

    def publish_progress(self, job_id: str) -> None:
        """Its replica has reported something."""
        entry = self._entries.get(job_id)
        if entry is None or entry.job is None or entry.job.final:
            return
        self._number(job_id, entry)
        self._wake_soon()

    def publish_deletions(self, job_ids: Iterable[str]) -> None:
        """The jobs are no more. Followers may know one that is not here, so each is published."""
        for job_id in job_ids:
            entry = self._entries.setdefault(job_id, _Entry(0, None, []))
            self._number(job_id, entry)
            entry.job = None
            entry.moves = []
            self._keep_ended(job_id)
        self._wake_soon()

    def restart(self, newest: Iterable[Job], horizon: Key) -> None:
        """Publish everything again, because another registry may have changed jobs.

        Args:
            newest: all jobs that were created since `horizon`. The live jobs stay too, which the
                registry compares with SQL itself.
        """
        self._epoch = uuid4().hex
        for job_id in self._ended:
            del self._entries[job_id]
        self._ended.clear()
        self.horizon = horizon
        for job in newest:
            self.publish(job)
        self._wake_soon()

    def live_jobs(self) -> list[Job]:
        """The jobs that have not ended, as far as this registry knows."""
        return [entry.job for entry in self._entries.values() if entry.job is not None and not entry.job.final]

    def publish_access(self, access: AccessTable) -> None:
        self.access = access
        self._wake_soon()

    def publish_places(self, places: Mapping[str, Place]) -> None:
        """The places of all live jobs, by id. They change all the time, so no poll is woken for them."""
        self._places = places
        self._places_version += 1

    def _number(self, job_id: str, entry: _Entry) -> None:
        self._seq += 1
        entry.seq = self._seq
        self._entries.move_to_end(job_id)

    def _keep_ended(self, job_id: str) -> None:
        """Keep what has ended as long as it is one of the last."""
        self._ended[job_id] = None
        self._ended.move_to_end(job_id)
        while len(self._ended) > self._max_ended:
            oldest, _ = self._ended.popitem(last=False)
            entry = self._entries.pop(oldest)
            self._forgotten_seq = max(self._forgotten_seq, entry.seq)
            if entry.job is not None:  # the horizon is right behind it: "~" sorts after every character of an id
                self.horizon = max(self.horizon, (entry.job.created_at, oldest + "~"))

    def _wake_soon(self) -> None:
        if self._wake_timer is None:
            self._wake_timer = asyncio.get_running_loop().call_later(self._timing.pace_s, self._wake)

    def _wake(self) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        self._announced_seq = self._seq
        self._news.set()

    # What followers ask

    def is_complete(self) -> bool:
        """Whether no other registry changes jobs unheard."""
        return self.leases.is_exclusive(time.monotonic())

    async def wait_for_news(self, follower: str, cursor: Cursor) -> None:
        """Note how far the follower is. Returns when it has news, after `hold_s` at the latest."""
        same_epoch = cursor.epoch == self._epoch
        self.leases.renew(follower, cursor.seq if same_epoch else -1, time.monotonic())
        self._polled.set()
        self._polled.clear()
        if not same_epoch or cursor.seq < self._announced_seq or cursor.access != self._access_version():
            return
        self._news.clear()
        await wait_for(self._news, self._timing.hold_s)

    def batch_since(self, cursor: Cursor) -> Batch:
        """What has changed since `cursor`."""
        # A cursor from before what was forgotten would miss how that ended.
        reset = cursor.epoch != self._epoch or cursor.seq < self._forgotten_seq
        since = 0 if reset else cursor.seq
        newest = self._entries_since(since)
        changes = tuple(
            Change(self._as_of_now(entry.job), tuple(move for seq, move in entry.moves if seq > since))
            for _, entry in newest
            if entry.job is not None
        )
        new_places = reset or cursor.places != self._places_version
        new_access = reset or cursor.access != self._access_version()
        return Batch(
            cursor=Cursor(self._epoch, self._seq, self._places_version, self._access_version()),
            reset=reset,
            changes=changes,
            deleted=tuple(job_id for job_id, entry in newest if entry.job is None),
            places=self._places if new_places else None,
            access=self.access if new_access else None,
            horizon=self.horizon,
            complete=self.is_complete(),
        )

    def _entries_since(self, seq: int) -> list[tuple[str, _Entry]]:
        """Those that have changed after `seq`, the oldest change first."""
        found = []
        for job_id, entry in reversed(self._entries.items()):
            if entry.seq <= seq:
                break
            found.append((job_id, entry))
        return found[::-1]

    def _access_version(self) -> int:
        return -1 if self.access is None else self.access.version

    # What writers wait for

    async def flush(self) -> None:
        """Return when no follower can answer a read without what was published until now."""
        self._wake()
        seq = self._seq
        published_at = now = time.monotonic()
        while (ends_at := self.leases.ends_without(seq, published_at, now)) is not None:
            # Any poll may be the last one that is missing; its cursor says so.
            await wait_for(self._polled, ends_at - now)
            now = time.monotonic()
