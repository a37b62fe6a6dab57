"""What the registry tells its followers, the ingress replicas, so that a read costs it no call.

A follower asks again and again with the cursor of the last answer and gets what has changed since. Its next question
tells that it has taken in everything before, and for `VALID_S` seconds from when it asked it may answer reads from what
it knows. A write is told to its client only when every follower has it, or may not answer from memory any more: so
whoever wrote reads it back, whichever replica is asked.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from serve_app.access.tenants import AccessTable
from serve_app.jobs import Job, Move, Place

HOLD_S = 1.0
VALID_S = 2.0
# What replicas do is told at this pace; what clients wrote at once.
PACE_S = 0.03
KEPT_ENDED = 2000

Key = tuple[float, str]
FIRST: Key = (-math.inf, "")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a follower has come. epoch: the life of the registry that said so. places, access: their versions."""

    epoch: str = ""
    seq: int = 0
    places: int = 0
    access: int = -1


@dataclass(frozen=True, slots=True)
class Change:
    """A job as it is now, and the newest moves of its history, the last of which is number `job.moves`."""

    job: Job
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """One answer.

    reset: what the follower knew before is void. deleted: ids of jobs. places: of all that wait or run;
    None, as access, if it is as before. horizon: all jobs that were created since then (time and id) have been told.
    complete: False while another registry on the same database changes jobs too, which are not told here.
    """

    cursor: Cursor
    reset: bool
    changes: tuple[Change, ...]
    deleted: tuple[str, ...]
    places: Mapping[str, Place] | None
    access: AccessTable | None
    horizon: Key
    complete: bool


@dataclass(slots=True)
class _Entry:
    """The newest that is known of a job, None when it was deleted; its moves by the seq they were told under."""

    seq: int
    job: Job | None
    moves: list[tuple[int, Move]]

    def take(self, job: Job) -> None:
        """`moves` stay without a gap up to the newest, or are empty."""
        known = 0 if self.job is None else self.job.moves
        if job.moves > known:
            if job.moves > known + 1 or job.last_move is None:
                self.moves = []
            if job.last_move is not None:
                self.moves.append((self.seq, job.last_move))
        self.job = job


@dataclass(slots=True)
class _Follower:
    acknowledged: int
    valid_until: float


@dataclass
class FeedPublisher:
    """The newest state of every live job and of the jobs that ended last, in the order of the changes.

    Args:
        now_of: the job with what its replica has told since its last move.
        born_again: followers of an earlier life may still answer from what it told them.
        kept_ended: ended jobs beyond this many are left to the database.
        whole_until: until then (monotonic seconds) no other registry changes jobs unheard.
        quiet_until: until then followers of another registry may answer without having heard of this one's writes.
    """

    now_of: Callable[[Job], Job] = lambda job: job
    born_again: bool = False
    kept_ended: int = KEPT_ENDED
    epoch: str = field(default_factory=lambda: uuid4().hex)
    horizon: Key = FIRST
    whole_until: float = math.inf
    quiet_until: float = -math.inf
    access: AccessTable | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    places_version: int = 0
    _seq: int = 0
    _called: int = 0
    _log: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    _ended: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _forgotten: int = 0
    _followers: dict[str, _Follower] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)
    _soon: asyncio.TimerHandle | None = None
    _born: float = field(default_factory=time.monotonic)

    # What happens to jobs

    def publish(self, job: Job) -> None:
        """A job was accepted or has moved. One that is older than what is known is passed over."""
        entry = self._log.get(job.id)
        if entry is None:
            entry = self._log[job.id] = _Entry(0, None, [])
        elif entry.job is None or entry.job.moves > job.moves:
            return
        self._note(job.id, entry)
        entry.take(job)
        if job.final:
            self._ended[job.id] = None
            self._ended.move_to_end(job.id)
            self._forget_old()
        self._wake_soon()

    def publish_progress(self, job_id: str) -> None:
        """Its replica has told something; followers hear of it in a moment."""
        entry = self._log.get(job_id)
        if entry is None or entry.job is None or entry.job.final:
            return
        self._note(job_id, entry)
        self._wake_soon()

    def publish_deletions(self, job_ids: Iterable[str]) -> None:
        """The jobs are no more."""
        for job_id in job_ids:
            entry = self._log.get(job_id)
            if entry is None:
                entry = self._log[job_id] = _Entry(0, None, [])
            self._note(job_id, entry)
            entry.job, entry.moves = None, []
            self._ended[job_id] = None
            self._ended.move_to_end(job_id)
        self._forget_old()
        self._wake_soon()

    def restart(self, newest: Iterable[Job], horizon: Key) -> None:
        """Others have changed jobs unheard: what has ended is as `newest` says, all of it since `horizon`."""
        self.epoch = uuid4().hex
        for job_id in self._ended:
            del self._log[job_id]
        self._ended.clear()
        self.horizon = horizon
        for job in newest:
            self.publish(job)
        self._wake_soon()

    @property
    def complete(self) -> bool:
        return time.monotonic() < self.whole_until

    def live_jobs(self) -> list[Job]:
        """The jobs that have not ended, as far as is known here."""
        return [entry.job for entry in self._log.values() if entry.job is not None and not entry.job.final]

    def publish_access(self, access: AccessTable) -> None:
        self.access = access
        self._wake_soon()

    def publish_places(self, places: Mapping[str, Place]) -> None:
        self.places, self.places_version = places, self.places_version + 1

    def _note(self, job_id: str, entry: _Entry) -> None:
        self._seq += 1
        entry.seq = self._seq
        self._log.move_to_end(job_id)

    def _forget_old(self) -> None:
        while len(self._ended) > self.kept_ended:
            job_id, _ = self._ended.popitem(last=False)
            entry = self._log.pop(job_id)
            self._forgotten = max(self._forgotten, entry.seq)
            if entry.job is not None:
                self.horizon = max(self.horizon, (entry.job.created_at, job_id + "~"))

    def _wake_soon(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(PACE_S, self._wake)

    def _wake(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._called = self._seq
        self._news.set()

    # What followers ask

    async def wait_for_news(self, follower: str, cursor: Cursor) -> None:
        """Note how far the follower is, and return when there is something new for it, after `HOLD_S` at the latest."""
        acknowledged = cursor.seq if cursor.epoch == self.epoch else -1
        self._followers[follower] = _Follower(acknowledged, time.monotonic() + VALID_S)
        self._heard.set()
        self._heard.clear()
        if cursor.epoch != self.epoch or cursor.seq < self._called or cursor.access != self._access_version():
            return
        self._news.clear()
        try:
            async with asyncio.timeout(HOLD_S):
                await self._news.wait()
        except TimeoutError:
            pass

    def batch_since(self, cursor: Cursor) -> Batch:
        """What has changed since `cursor`."""
        reset = cursor.epoch != self.epoch or cursor.seq < self._forgotten
        since = 0 if reset else cursor.seq
        newest = [(job_id, entry) for job_id, entry in self._since(since)]
        changes = tuple(
            Change(self.now_of(entry.job), tuple(move for seq, move in entry.moves if seq > since))
            for _, entry in newest
            if entry.job is not None
        )
        deleted = tuple(job_id for job_id, entry in newest if entry.job is None)
        new_places = reset or cursor.places != self.places_version
        new_access = reset or cursor.access != self._access_version()
        return Batch(
            cursor=Cursor(self.epoch, self._seq, self.places_version, self._access_version()),
            reset=reset,
            changes=changes,
            deleted=deleted,
            places=self.places if new_places else None,
            access=self.access if new_access else None,
            horizon=self.horizon,
            complete=self.complete,
        )

    def _since(self, seq: int) -> list[tuple[str, _Entry]]:
        """Oldest change first."""
        found = []
        for job_id, entry in reversed(self._log.items()):
            if entry.seq <= seq:
                break
            found.append((job_id, entry))
        return found[::-1]

    def _access_version(self) -> int:
        return -1 if self.access is None else self.access.version

    # What writers wait for

    async def flush(self) -> None:
        """Return when no follower answers reads from before what was written until now."""
        self._wake()
        wanted, ends = self._seq, time.monotonic() + VALID_S
        quiet_until = max(self.quiet_until, self._born + VALID_S) if self.born_again else self.quiet_until
        if (rest := quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        while (now := time.monotonic()) < ends and (behind := self._behind(wanted, now)):
            try:
                async with asyncio.timeout(behind - now):
                    await self._heard.wait()
            except TimeoutError:
                pass

    def _behind(self, seq: int, now: float) -> float | None:
        """When the last follower that has not taken in `seq` ceases to answer from memory; None if all have."""
        self._followers = {name: known for name, known in self._followers.items() if known.valid_until > now}
        left = [known.valid_until for known in self._followers.values() if known.acknowledged < seq]
        return max(left) if left else None
