"""In-memory services behind the interfaces of the real ones, for tests of the HTTP side without Ray."""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

from deployments.errors import MochiServeError, RegistryUnavailableError
from deployments.keys import Variant, video_key
from deployments.messages import VIDEO_STAGES, ReplicaInfo, Stage, VideoSpec
from deployments.metrics.recorder import Series, Snapshot, Value
from deployments.replica.registry_link import Method, P, T
from serve_app.access.tenants import AccessTable
from serve_app.config import AppSettings, load_settings
from serve_app.errors import IdempotencyKeyReusedError, TooLargeError, UnknownJobError
from serve_app.feed.follower import FeedFollower
from serve_app.feed.publisher import Batch, Cursor, FeedPublisher
from serve_app.ingress.job_access import Timing
from serve_app.ingress.services import Services
from serve_app.jobs import (
    RUNNING,
    Acceptance,
    Health,
    Job,
    JobError,
    JobFilter,
    JobPage,
    JobState,
    Move,
    Submission,
    check_move,
    first_move,
)
from serve_app.prompts.tokens import load_token_counter
from serve_app.registry_api import RegistryApi, RegistryClient
from serve_app.scheduling.activity import Activity, Gpu, Running, count_waiting
from serve_app.scheduling.fitting import memory_limit
from tests.support.workers.memory_store import MemoryStore

CONTENT_TYPES: dict[Variant, str] = {
    "video": "video/mp4",
    "thumbnail": "image/webp",
    "spritesheet": "image/webp",
}


class MemoryRegistry:
    """The job registry's methods over a dict, and the link to it: `call`. Its clock ticks by calls."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.replicas: dict[Stage, tuple[ReplicaInfo, ...]] = {}
        self.previews: dict[str, bytes] = {}
        self.moves: dict[str, list[Move]] = {}
        self.deleted: dict[str, str] = {}
        self.feed = FeedPublisher(lambda job: self.jobs.get(job.id, job), access=AccessTable(0, {}, {}))
        self.keys: dict[tuple[str, str], Submission] = {}
        self.refusals: list[MochiServeError] = []  # raised one by one by the next submits that would make a job
        self.calls: Counter[str] = Counter()
        self.reachable = True
        self.lost_calls: Counter[str] = Counter()  # so many next calls of a method do not arrive
        self.lost_answers = 0  # of so many calls the work is done, and the answer does not arrive
        self.database = "ok"
        self.unread_access: AccessTable | None = None  # tenants and keys in the database that were not looked at yet
        self.wait_s = 0.0  # what is forecast for the next job
        self.limit_s = 60.0  # over which it becomes a draft, if it may
        self.counted: dict[Series, Value] = {}
        self.starting: dict[Stage, tuple[float, ...]] = {}
        self.gpus: tuple[Gpu, ...] = ()
        self._clock = itertools.count(1_700_000_000)

    async def call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.calls[method.__name__] += 1
        if not self.reachable or self.lost_calls[method.__name__]:
            self.lost_calls[method.__name__] -= self.reachable
            await asyncio.sleep(0.001)  # the real link waits for longer; nothing may spin meanwhile
            raise RegistryUnavailableError(
                "the job registry gave no answer; try again in a few seconds", "its database at db.internal:5432"
            )
        answer: T = await getattr(self, method.__name__)(*args, **kwargs)
        if self.lost_answers and method is not RegistryApi.poll_feed:
            self.lost_answers -= 1
            raise RegistryUnavailableError("the job registry gave no answer; try again in a few seconds")
        return answer

    async def submit(self, submission: Submission) -> Acceptance:
        known = self._known(submission)
        if known is not None:
            return Acceptance(known, repeated=True)
        if isinstance(submission.spec, VideoSpec):
            tokens, limit = submission.spec.clip.tokens, memory_limit(self.replicas.get(Stage.SAMPLING, ()))
            if limit is not None and tokens > limit:
                raise TooLargeError(tokens, limit)
        if self.refusals:
            raise self.refusals.pop(0)
        if submission.draft is not None and self.wait_s > self.limit_s:
            submission = submission.as_draft(self.wait_s, self.limit_s)
        job = self.insert(submission)
        await self.feed.flush()
        return Acceptance(job, repeated=False)

    def _known(self, asked: Submission) -> Job | None:
        first = None if asked.idempotency_key is None else self.keys.get((asked.tenant, asked.idempotency_key))
        if first is None:
            return self.jobs.get(asked.job_id)
        if not asked.repeats(first.fingerprint, first.sent_fingerprint):
            raise IdempotencyKeyReusedError(asked.idempotency_key or "")
        return self.jobs[first.job_id]

    def insert(self, new: Submission) -> Job:
        """A new job, without the bounds that `submit` knows."""
        at = float(next(self._clock))
        job = new.accepted(at)
        self.jobs[job.id] = job
        self.moves[job.id] = [first_move(at, new.spec.kind)]
        self.feed.publish(job)
        if new.idempotency_key is not None:
            self.keys[new.tenant, new.idempotency_key] = new
        return job

    async def get(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    async def push_metrics(self, snapshot: Snapshot) -> None:
        self.counted = snapshot.values

    async def metrics(self) -> dict[Series, Value]:
        return self.counted

    async def cancel(self, job_id: str) -> Job | None:
        job = self.jobs.get(job_id)
        if job is None or job.final:
            return job
        error = JobError("cancelled", "the job was cancelled")
        cancelled = self.move(job_id, JobState.CANCELLED, error=error, completed_at=float(next(self._clock)))
        await self.feed.flush()
        return cancelled

    async def delete(self, job_id: str, tenant: str | None) -> bool:
        owner = self.jobs[job_id].tenant if job_id in self.jobs else self.deleted.get(job_id)
        if owner is None or tenant not in (None, owner):
            return False
        await self.cancel(job_id)
        if self.jobs.pop(job_id, None) is not None:
            self.deleted[job_id] = owner
            self.moves.pop(job_id)
            self.feed.publish_deletions([job_id])
        await self.feed.flush()
        return True

    async def poll_feed(self, follower: str, cursor: Cursor) -> Batch:
        await self.feed.wait_for_news(follower, cursor)
        return self.feed.batch_since(cursor)

    async def preview(self, job_id: str) -> bytes | None:
        return self.previews.get(job_id)

    async def history(self, job_id: str) -> list[Move] | None:
        return self.moves.get(job_id)

    async def list_jobs(self, limit: int, after: str | None, order: str, wanted: JobFilter) -> JobPage:
        jobs = sorted(self.jobs.values(), key=lambda job: job.created_at, reverse=order == "desc")
        if after is not None:
            if after not in self.jobs:
                raise UnknownJobError(after)
            jobs = jobs[jobs.index(self.jobs[after]) + 1 :]
        jobs = [job for job in jobs if wanted.matches(job)]
        return JobPage(tuple(jobs[:limit]), len(jobs) > limit)

    async def activity(self) -> Activity:
        queued = [job for job in self.jobs.values() if job.state is JobState.QUEUED]
        running = [job for job in self.jobs.values() if job.state in RUNNING]
        on = {stage: infos[0].replica for stage, infos in self.replicas.items() if infos}
        return Activity(
            count_waiting(queued, lambda job: 2.4),
            tuple(Running(job, on.get(job.stage), 0.25 if job.state is JobState.SAMPLING else None) for job in running),
            self.replicas,
            self.starting,
            self.gpus,
        )

    async def health(self) -> Health:
        queue: dict[JobState, int] = {}
        for job in self.jobs.values():
            if not job.final:
                queue[job.state] = queue.get(job.state, 0) + 1
        return Health(self.replicas, queue, self.database, starting=self.starting)

    async def refresh_access(self) -> int:
        if self.unread_access is not None:
            self.feed.publish_access(self.unread_access)
            self.unread_access = None
        assert self.feed.access is not None
        return self.feed.access.version

    async def poll_access(self, version: int) -> AccessTable | None:
        if self.feed.access is not None and self.feed.access.version != version:
            return self.feed.access
        await asyncio.sleep(0.01)  # the real registry holds the call for longer
        return None

    def announce_all(self, max_tokens: int | None = None) -> None:
        """One replica of every stage; max_tokens: what the sampler's memory holds."""
        for stage in VIDEO_STAGES:
            limit = max_tokens if stage is Stage.SAMPLING else None
            self.replicas[stage] = (ReplicaInfo(f"{stage}#1", stage, 1, "cpu", "mochi-1", limit),)

    def move(self, job_id: str, state: JobState, **changes: Any) -> Job:
        """Move a job as the real registry would, along the table of moves."""
        job = self.jobs[job_id]
        check_move(job.state, state)
        moved = replace(job, state=state, moves=job.moves + 1, **changes)
        note = str(state) if moved.error is None else moved.error.message
        move = Move(float(next(self._clock)), state, moved.stage, moved.attempt, note)
        self.moves[job_id].append(move)
        self.jobs[job_id] = replace(moved, last_move=move)
        self.feed.publish(self.jobs[job_id])
        return self.jobs[job_id]

    def complete(self, job_id: str) -> Job:
        steps = self.jobs[job_id].video.num_inference_steps
        self.move(job_id, JobState.ENCODING)
        self.move(job_id, JobState.QUEUED, stage=Stage.SAMPLING)
        self.move(job_id, JobState.SAMPLING, step=steps, steps_run=steps, progress=0.9)
        self.move(job_id, JobState.QUEUED, stage=Stage.DECODING)
        self.move(job_id, JobState.DECODING, progress=0.97)
        seconds = {"sampling": 1.5}
        return self.move(
            job_id, JobState.COMPLETED, progress=1.0, completed_at=float(next(self._clock)), seconds=seconds
        )


@cache
def shapes_settings() -> AppSettings:
    """The profile of the included model, without what the environment says."""
    return load_settings("configs/shapes.yaml", {})


class MemoryFeed(FeedFollower):
    """The feed of the registry, which a test can interrupt or let fall behind."""

    interrupted = False  # reads ask the registry
    known_access: AccessTable | None = None  # tenants and keys as sent before the feed was interrupted
    without_history = False  # as after a restart of the registry
    late_histories = 0  # so many next histories lack their last move

    def __init__(self, registry: RegistryApi) -> None:
        super().__init__(registry)
        self.late_jobs: dict[str, Job] = {}  # as they were before the news that has not arrived yet

    @property
    def valid(self) -> bool:
        return not self.interrupted and super().valid

    async def access(self, version: int | None = None) -> AccessTable:
        return self.known_access or await super().access(version)

    def get(self, job_id: str) -> Job | None:
        return self.late_jobs.get(job_id) or super().get(job_id)

    def moves(self, job_id: str) -> tuple[Move, ...] | None:
        moves = None if self.without_history else super().moves(job_id)
        if moves is None or self.late_histories == 0:
            return moves
        self.late_histories -= 1
        return moves[:-1]


class FakeServices(Services):
    """Services over memory, with the included model's own tokenizer."""

    store: MemoryStore
    feed: MemoryFeed

    def __init__(self, settings: AppSettings | None = None, timing: Timing | None = None) -> None:
        settings = settings or shapes_settings()
        self.now = 0.0  # what the wall clock says: before all jobs, so that none expires
        self.memory = MemoryRegistry()
        registry = RegistryClient(self.memory)
        super().__init__(
            settings=settings,
            registry=registry,
            store=MemoryStore(),
            feed=MemoryFeed(registry),
            count_tokens=load_token_counter(settings.model.source),
            timing=timing or Timing(),
            unix_time=lambda: self.now,
        )

    def add_file(self, video_id: str, variant: Variant, data: bytes) -> None:
        """A file of a video, as the decoder writes it."""
        self.store.add(video_key(video_id, variant), data, CONTENT_TYPES[variant])
