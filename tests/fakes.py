"""In-memory services behind the interfaces of the real ones, for tests of the HTTP side without Ray."""

import hashlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from deployments.errors import RegistryUnavailableError, StorageUnavailableError
from deployments.messages import ReplicaInfo, Stage, VideoSpec
from deployments.object_store import ObjectInfo
from serve_app.config import AppSettings, load_settings
from serve_app.errors import TooLargeError, UnknownJobError
from serve_app.fitting import memory_limit, sample_tokens
from serve_app.jobs import Health, Job, JobError, JobPage, JobState, check_move
from serve_app.prompt_limits import load_token_counter
from serve_app.services import Services
from serve_app.video_storage import Variant

MODIFIED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
CONTENT_TYPES: dict[Variant, str] = {"video": "video/mp4", "thumbnail": "image/webp"}


class MemoryRegistry:
    """The job registry's methods over a dict, called by name as through `RegistryLink`. Its clock ticks by calls."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.replicas: dict[Stage, tuple[ReplicaInfo, ...]] = {}
        self.previews: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.reachable = True
        self._clock = itertools.count(1_700_000_000)

    async def call(self, method: str, *args: Any) -> Any:
        self.calls[method] += 1
        if not self.reachable:
            raise RegistryUnavailableError("the job registry gave no answer; try again in a few seconds")
        return await getattr(self, method)(*args)

    async def submit(self, job_id: str, model: str, spec: VideoSpec) -> Job:
        tokens, limit = sample_tokens(spec), memory_limit(self.replicas.get(Stage.SAMPLING, ()))
        if limit is not None and tokens > limit and job_id not in self.jobs:
            raise TooLargeError(tokens, limit)
        new = Job(job_id, model, spec, JobState.QUEUED, Stage.ENCODING, 1, float(next(self._clock)))
        return self.jobs.setdefault(job_id, new)

    async def get(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    async def cancel(self, job_id: str) -> Job | None:
        job = self.jobs.get(job_id)
        if job is None or job.final:
            return job
        error = JobError("cancelled", "the job was cancelled")
        return self.move(job_id, JobState.CANCELLED, error=error, completed_at=float(next(self._clock)))

    async def preview(self, job_id: str) -> bytes | None:
        return self.previews.get(job_id)

    async def list_jobs(self, limit: int, after: str | None, order: str) -> JobPage:
        jobs = sorted(self.jobs.values(), key=lambda job: job.created_at, reverse=order == "desc")
        if after is not None:
            if after not in self.jobs:
                raise UnknownJobError(after)
            jobs = jobs[jobs.index(self.jobs[after]) + 1 :]
        return JobPage(tuple(jobs[:limit]), len(jobs) > limit)

    async def health(self) -> Health:
        queue: dict[JobState, int] = {}
        for job in self.jobs.values():
            if not job.final:
                queue[job.state] = queue.get(job.state, 0) + 1
        return Health(self.replicas, queue)

    def announce_all(self, max_tokens: int | None = None) -> None:
        """One replica of every stage; max_tokens: what the sampler's memory holds."""
        for stage in Stage:
            limit = max_tokens if stage is Stage.SAMPLING else None
            self.replicas[stage] = (ReplicaInfo(f"{stage}#1", stage, 1, "cpu", "mochi-1", limit),)

    def move(self, job_id: str, state: JobState, **changes: Any) -> Job:
        """Move a job as the real registry would, along the table of moves."""
        job = self.jobs[job_id]
        check_move(job.state, state)
        self.jobs[job_id] = replace(job, state=state, **changes)
        return self.jobs[job_id]

    def complete(self, job_id: str) -> Job:
        steps = self.jobs[job_id].spec.num_inference_steps
        self.move(job_id, JobState.ENCODING)
        self.move(job_id, JobState.QUEUED, stage=Stage.SAMPLING)
        self.move(job_id, JobState.SAMPLING, step=steps, steps_run=steps, progress=0.9)
        self.move(job_id, JobState.QUEUED, stage=Stage.DECODING)
        self.move(job_id, JobState.DECODING, progress=0.97)
        seconds = {"sampling": 1.5}
        return self.move(
            job_id, JobState.COMPLETED, progress=1.0, completed_at=float(next(self._clock)), seconds=seconds
        )


class MemoryStorage:
    """Files of videos in a dict. `open_streams` counts what is being read; all are closed in the end."""

    def __init__(self, files: Mapping[tuple[str, Variant], bytes] | None = None, chunk: int = 1000) -> None:
        self.files = dict(files or {})
        self.reachable = True
        self.open_streams = 0
        self._chunk = chunk

    async def ping(self) -> None:
        self._check()

    async def stat_video(self, job_id: str, variant: Variant) -> ObjectInfo | None:
        self._check()
        data = self.files.get((job_id, variant))
        if data is None:
            return None
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return ObjectInfo(len(data), etag, MODIFIED, CONTENT_TYPES[variant])

    async def stream_video(
        self, job_id: str, variant: Variant, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        self._check()
        data = self.files[job_id, variant][offset:]
        data = data if length is None else data[:length]
        self.open_streams += 1
        try:
            for start in range(0, len(data), self._chunk):
                yield data[start : start + self._chunk]
        finally:
            self.open_streams -= 1

    def _check(self) -> None:
        if not self.reachable:
            raise StorageUnavailableError("the object store does not answer")


def shapes_settings() -> AppSettings:
    """The profile of the included model, without what the environment says."""
    return load_settings("configs/shapes.yaml", {})


class FakeServices(Services):
    """Services over memory, with the included model's own tokenizer."""

    registry: MemoryRegistry
    storage: MemoryStorage

    def __init__(self, settings: AppSettings | None = None) -> None:
        settings = settings or shapes_settings()
        count = load_token_counter(settings.model.source)
        super().__init__(settings, MemoryRegistry(), MemoryStorage(), count)
