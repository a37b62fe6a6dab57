"""A whole pipeline in one process: a registry on SQLite, replicas of the included model, a store in memory."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deployments.decoder.video_decoder import VideoDecoder
from deployments.messages import Stage, StageTask, VideoSpec
from deployments.prompts.prompt_encoder import PromptEncoder
from deployments.replica.connections import Connections
from deployments.sampler.mochi_sampler import MochiSampler
from deployments.storage.object_store import Bucket
from serve_app.config import JobSettings, SchedulingSettings
from serve_app.jobs import Job, JobState, Submission
from serve_app.registry.actor import JobRegistry
from tests.support.waiting import PATIENCE_S
from tests.support.workers.fakes import SHAPES, undecorated, worker_settings
from tests.support.workers.memory_store import MemoryStore

DEPLOYMENTS: dict[Stage, Any] = {
    Stage.ENCODING: PromptEncoder,
    Stage.SAMPLING: MochiSampler,
    Stage.DECODING: VideoDecoder,
}


@dataclass
class Pipeline:
    """Its stages are started one by one, each with a model of its own."""

    url: str  # of the database
    max_attempts: int = 1
    store: MemoryStore = field(default_factory=MemoryStore)
    registry: JobRegistry = field(init=False)
    replicas: dict[Stage, Any] = field(default_factory=dict)
    _held: dict[Stage, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = JobSettings(retry_pause_s=0.01, max_attempts=self.max_attempts)
        self.registry = JobRegistry(self.url, settings, SchedulingSettings(), "here", send=self._send)

    async def _send(self, task: StageTask, accept: Callable[[str], bool]) -> None:
        if task.stage in self._held:
            await self._held[task.stage].wait()
        assert accept(task.stage)
        await self.replicas[task.stage].run(task)

    def hold(self, stage: Stage) -> None:
        """From now on no task reaches the stage's replica: the next ones go to the one that is started after this."""
        self._held[stage] = asyncio.Event()

    def start(self, *stages: Stage, model: Path = SHAPES) -> None:
        """Starts a replica of each stage, in place of the one that is there."""

        def open_bucket(name: str) -> Bucket:
            return self.store

        for stage in stages:
            self.stop(stage)
            connections = Connections(stage, self.registry, self.store, open_bucket)
            settings = worker_settings(stage, model).model_copy(update={"torch_threads": 1})
            self.replicas[stage] = undecorated(DEPLOYMENTS[stage])(settings, connections=connections)
            if stage in self._held:
                self._held.pop(stage).set()

    def stop(self, stage: Stage) -> None:
        if stage in self.replicas:
            self.replicas.pop(stage).__del__()

    async def close(self) -> None:
        for stage in list(self.replicas):
            self.stop(stage)
        await self.registry.close()

    async def submit(self, job_id: str, video: VideoSpec) -> None:
        await self.registry.submit(Submission(job_id, "mochi-1", video))

    async def reaches(self, job_id: str, state: JobState, stage: Stage) -> Job:
        return await self.until(job_id, lambda job: (job.state, job.stage) == (state, stage))

    async def until(self, job_id: str, condition: Callable[[Job], bool]) -> Job:
        """The job once the condition holds. Raises AssertionError if it fails before."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.registry.get(job_id)
                assert job is not None and job.state is not JobState.FAILED, job
                if condition(job):
                    return job
                await asyncio.sleep(0.01)


def with_other_weights(folder: Path, *parts: str) -> Path:
    """A copy of the included model in `folder` whose parts have other weights of the same shapes."""
    copy = Path(shutil.copytree(SHAPES, folder / f"other-{'-'.join(parts)}"))
    (copy / "SHA256SUMS").unlink()  # it tells of the weights that were copied
    for part in parts:
        for path in (copy / part).glob("*.safetensors"):
            generator = torch.Generator().manual_seed(1)
            tensors = {
                name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                for name, tensor in load_file(path).items()
            }
            save_file(tensors, path, metadata={"format": "pt"})
    return copy
