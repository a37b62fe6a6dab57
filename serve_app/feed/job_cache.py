"""What an ingress replica knows of the jobs from the registry's feed. No I/O, and no word on whether it still holds."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from serve_app.access.tenants import AccessTable
from serve_app.feed.publisher import FIRST, Batch, Change, Cursor, Key
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order, Place

# With this many, and twice as many as the feed began with, it begins anew with what is worth keeping.
MAX_JOBS = 20_000


@dataclass
class JobCache:
    """The jobs that the feed has told of: all live ones, and all that were created since `horizon`."""

    cursor: Cursor = Cursor()
    horizon: Key = FIRST
    access: AccessTable | None = None
    complete: bool = False
    _jobs: dict[str, Job] = field(default_factory=dict)
    _moves: dict[str, tuple[Move, ...]] = field(default_factory=dict)
    _places: dict[str, Place] = field(default_factory=dict)
    _keys: list[Key] = field(default_factory=list)
    _most: int = MAX_JOBS

    def apply(self, batch: Batch) -> set[str]:
        """Take in an answer of the feed; returns the ids of the jobs that are others now."""
        changed = {change.job.id for change in batch.changes} | set(batch.deleted)
        if batch.reset:
            changed |= set(self._jobs)
            self._jobs, self._moves, self._places, self._keys = {}, {}, {}, []
        for change in batch.changes:
            self._take(change)
        for job_id in batch.deleted:
            self._drop(job_id)
        if batch.places is not None:
            changed |= self._take_places(dict(batch.places))
        if batch.access is not None:
            self.access = batch.access
        self.cursor, self.horizon, self.complete = batch.cursor, batch.horizon, batch.complete
        if batch.reset:
            self._most = max(MAX_JOBS, 2 * len(self._jobs))
        self._trim()
        return changed

    def get(self, job_id: str) -> Job | None:
        """The job, with its place in the queue; None if it is not known here."""
        job = self._jobs.get(job_id)
        return None if job is None else self._placed(job)

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        """The whole history of a job, None if it is not known whole."""
        job, moves = self._jobs.get(job_id), self._moves.get(job_id, ())
        return moves if job is not None and len(moves) == job.moves else None

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None:
        """The page that SQL would give, None if that cannot be told from here: it reaches behind the horizon."""
        cursor = None
        if after is not None:
            job = self._jobs.get(after)
            if job is None or (key := _key(job)) < self.horizon:
                return None
            cursor = key
        if order == "asc" and self.horizon != FIRST and cursor is None:
            return None
        found: list[Job] = []
        for key in self._walk(cursor, order):
            job = self._jobs[key[1]]
            if wanted.matches(job):
                found.append(self._placed(job))
                if len(found) > limit:
                    return JobPage(tuple(found[:limit]), has_more=True)
        ended = order == "asc" or self.horizon == FIRST or self._before_horizon(wanted)
        return JobPage(tuple(found), has_more=False) if ended else None

    def _before_horizon(self, wanted: JobFilter) -> bool:
        return wanted.created_after is not None and wanted.created_after > self.horizon[0]

    def _walk(self, cursor: Key | None, order: Order) -> Iterator[Key]:
        begin, end = bisect_left(self._keys, self.horizon), len(self._keys)
        if cursor is not None:
            at = bisect_left(self._keys, cursor)
            begin, end = (begin, at) if order == "desc" else (at + 1, end)
        places = range(begin, end)
        return (self._keys[n] for n in (reversed(places) if order == "desc" else places))

    def _take(self, change: Change) -> None:
        job = change.job
        if job.id not in self._jobs:
            insort(self._keys, _key(job))
        self._jobs[job.id] = job
        self._moves[job.id] = _joined(self._moves.get(job.id, ()), change)
        if job.final:
            self._places.pop(job.id, None)

    def _drop(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            del self._keys[bisect_left(self._keys, _key(job))]
        self._moves.pop(job_id, None)
        self._places.pop(job_id, None)

    def _take_places(self, places: dict[str, Place]) -> set[str]:
        before, self._places = self._places, places
        return {job_id for job_id in before.keys() | places.keys() if before.get(job_id) != places.get(job_id)}

    def _placed(self, job: Job) -> Job:
        place = self._places.get(job.id)
        return job if job.final or place is None else replace(job, place=place.for_job(job))

    def _trim(self) -> None:
        if len(self._jobs) > self._most:
            self.cursor = Cursor(access=self.cursor.access)


def _joined(known: tuple[Move, ...], change: Change) -> tuple[Move, ...]:
    """The history from its beginning, or nothing if there is a gap."""
    first = change.job.moves - len(change.moves)
    if len(known) < first:
        return ()
    return (*known[:first], *change.moves)


def _key(job: Job) -> Key:
    return (job.created_at, job.id)
