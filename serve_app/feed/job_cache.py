"""An ingress replica's copy of the jobs, made of the feed's batches. No I/O."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import replace

from serve_app.access.tenants import AccessTable
from serve_app.feed.publisher import FIRST, Batch, Change, Cursor, Key
from serve_app.jobs import Job, JobFilter, JobPage, Move, Order, Place

MAX_JOBS = 20_000


class JobCache:
    """All live jobs, and all jobs that were created since `horizon`.

    Args:
        access: tenants and keys, if they are known already.
        max_jobs: with more jobs, and twice as many as the feed began with, it begins anew with what
            is worth keeping.
    """

    def __init__(self, access: AccessTable | None = None, max_jobs: int = MAX_JOBS) -> None:
        self.cursor = Cursor()
        self.horizon: Key = FIRST
        self.access = access
        self.complete = False  # False: another registry may change jobs too
        self._max_jobs = max_jobs
        self._begins_anew_above = max_jobs
        self._jobs: dict[str, Job] = {}
        self._moves: dict[str, tuple[Move, ...]] = {}
        self._places: dict[str, Place] = {}
        self._keys: list[Key] = []  # of all jobs, sorted

    def __len__(self) -> int:
        return len(self._jobs)

    def apply(self, batch: Batch) -> set[str]:
        """Take in a batch of the feed; returns the ids of the jobs that have changed."""
        changed = {change.job.id for change in batch.changes} | set(batch.deleted)
        if batch.reset:
            changed |= set(self._jobs)
            self._jobs = {}
            self._moves = {}
            self._places = {}
            self._keys = []
        for change in batch.changes:
            self._apply_change(change)
        for job_id in batch.deleted:
            self._remove(job_id)
        if batch.places is not None:
            changed |= self._apply_places(batch.places)
        if batch.access is not None:
            self.access = batch.access
        self.cursor = batch.cursor
        self.horizon = batch.horizon
        self.complete = batch.complete
        if batch.reset:
            self._begins_anew_above = max(self._max_jobs, 2 * len(self._jobs))
        if len(self._jobs) > self._begins_anew_above:
            self.cursor = Cursor(access=self.cursor.access)  # no epoch: the next batch is a reset
        return changed

    def get(self, job_id: str) -> Job | None:
        """The job, with its place in the queue; None if it is not known here."""
        job = self._jobs.get(job_id)
        return None if job is None else self._with_place(job)

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        """The whole history of a job; None if a part of it is not known here."""
        job = self._jobs.get(job_id)
        moves = self._moves.get(job_id, ())
        return moves if job is not None and len(moves) == job.moves else None

    def page(self, limit: int, after: str | None, order: Order, wanted: JobFilter) -> JobPage | None:
        """The page that SQL would give; None if it reaches behind the horizon."""
        cursor = None
        if after is not None:
            job = self._jobs.get(after)
            if job is None or (key := _key(job)) < self.horizon:
                return None
            cursor = key
        all_known = self.horizon == FIRST
        if order == "asc" and not all_known and cursor is None:
            return None  # it begins with the oldest job of all
        found: list[Job] = []
        for key in self._keys_after(cursor, order):
            job = self._jobs[key[1]]
            if wanted.matches(job):
                found.append(self._with_place(job))
                if len(found) > limit:
                    return JobPage(tuple(found[:limit]), has_more=True)
        # The listing ends here only if it cannot go on behind the horizon.
        ends_before_horizon = wanted.created_after is not None and wanted.created_after > self.horizon[0]
        if order == "asc" or all_known or ends_before_horizon:
            return JobPage(tuple(found), has_more=False)
        return None

    def _keys_after(self, cursor: Key | None, order: Order) -> Iterator[Key]:
        """Keys since the horizon in the order of the listing, after `cursor` or from the first."""
        begin = bisect_left(self._keys, self.horizon)
        end = len(self._keys)
        if cursor is not None:
            at = bisect_left(self._keys, cursor)
            begin, end = (begin, at) if order == "desc" else (at + 1, end)
        indices = range(begin, end)
        return (self._keys[n] for n in (reversed(indices) if order == "desc" else indices))

    def _apply_change(self, change: Change) -> None:
        job = change.job
        if job.id not in self._jobs:
            insort(self._keys, _key(job))
        self._jobs[job.id] = job
        before = self._moves.get(job.id, ())
        first = job.moves - len(change.moves)
        # With a gap between what is known and what is new the history is not known.
        self._moves[job.id] = (*before[:first], *change.moves) if len(before) >= first else ()
        if job.final:
            self._places.pop(job.id, None)

    def _remove(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            del self._keys[bisect_left(self._keys, _key(job))]
        self._moves.pop(job_id, None)
        self._places.pop(job_id, None)

    def _apply_places(self, places: Mapping[str, Place]) -> set[str]:
        """Returns the ids of the jobs that have another place now."""
        before = self._places
        self._places = dict(places)
        return {job_id for job_id in before.keys() | places.keys() if before.get(job_id) != places.get(job_id)}

    def _with_place(self, job: Job) -> Job:
        place = self._places.get(job.id)
        return job if job.final or place is None else replace(job, place=place.for_job(job))


def _key(job: Job) -> Key:
    return (job.created_at, job.id)
