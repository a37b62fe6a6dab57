"""Stage 2: embeddings and noise to latents, step by step."""

import json
from dataclasses import asdict

import torch
from ray import serve
from safetensors.torch import load, save
from torch import Tensor

from deployments.connections import Connections, connect
from deployments.denoise import Rope, RowState, Shape, denoise_step, latent_shape, rope_tables, start_row
from deployments.device import describe_device, replica_device, set_threads
from deployments.errors import TransientError
from deployments.messages import ReplicaInfo, Stage, StageTask, VideoSpec, latents_key, prompt_embeds_key
from deployments.mochi_model import DtypeName, check_scheduler, load_transformer
from deployments.model_store import model_folder
from deployments.running_task import RunningTask
from deployments.settings import WorkerSettings
from deployments.stage_worker import StageWorker

PARTS = ("transformer",)
LATENTS_FORMAT = "mochi-serve-latents-1"


@serve.deployment
class MochiSampler:
    """A replica of the sampler: one transformer, one thread, one job at a time."""

    def __init__(self, settings: WorkerSettings, connections: Connections | None = None) -> None:
        to = connections or connect(settings)
        self._device = replica_device()
        set_threads(settings.stage.torch_threads)
        self._model = settings.model
        folder = model_folder(self._model, PARTS, to.open_bucket)
        check_scheduler(folder)
        self._transformer = load_transformer(folder, self._model.dtype, self._device)
        self._rope: dict[Shape, Rope] = {}
        self._store = to.store
        info = ReplicaInfo(to.replica, Stage.SAMPLING, 1, describe_device(self._device), self._model.name)
        self._worker = StageWorker(info, to.link)
        self._worker.warm_up(self._warm_up)

    async def run(self, task: StageTask) -> None:
        """Do one task; everything is told to the registry by reports."""
        await self._worker.run(task, self._sample)

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.close()

    async def _sample(self, running: RunningTask) -> None:
        task = running.task
        embeds = load(await self._store.get(prompt_embeds_key(task.job_id)))
        running.clock.lap("load")
        latents = await running.in_thread(self._denoise, running, embeds)
        running.clock.lap("denoise")
        data = pack_latents(latents, self._model.name, self._model.dtype, task.spec)
        await self._store.put(latents_key(task.job_id), data, "application/octet-stream")
        running.clock.lap("store")

    def _denoise(self, running: RunningTask, embeds: dict[str, Tensor]) -> Tensor:
        """[12, T, H/8, W/8] fp32 on the CPU."""
        row = self._row(running.task.spec, embeds)
        running.progress(row.step, row.num_steps)
        while not row.done:
            (row,) = denoise_step(self._transformer, [row])
            running.progress(row.step, row.num_steps)
        return check_finite(row.latents.cpu())

    def _row(self, spec: VideoSpec, embeds: dict[str, Tensor]) -> RowState:
        shape = latent_shape(spec)
        if shape not in self._rope:  # one at a time: at 163 frames of 848x480 the tables are 546 MB
            self._rope = {shape: rope_tables(self._transformer, shape)}
        return start_row(self._transformer, spec, embeds, self._rope[shape])

    def _warm_up(self) -> None:
        """One guided step of the smallest video."""
        model, config = self._model, self._transformer.config
        spec = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, seed=0)
        zeros = torch.zeros(model.max_sequence_length, config.text_embed_dim)
        mask = torch.arange(model.max_sequence_length) < 1
        names = {"prompt_embeds": zeros, "prompt_mask": mask, "negative_embeds": zeros, "negative_mask": mask}
        denoise_step(self._transformer, [self._row(spec, names)])


def check_finite(latents: Tensor) -> Tensor:
    """Return the latents as they are.

    Raises:
        TransientError: `non_finite_latents`: another replica may do better, a faulty GPU does this.
    """
    if not bool(torch.isfinite(latents).all()):
        raise TransientError("non_finite_latents", "sampling gave NaN or infinity; the job is tried again")
    return latents


def pack_latents(latents: Tensor, model: str, dtype: DtypeName, spec: VideoSpec) -> bytes:
    """Safetensors with `latents` fp32 and, in its header, what they were made of."""
    made_of = {"format": LATENTS_FORMAT, "model": model, "dtype": dtype, "spec": json.dumps(asdict(spec))}
    return save({"latents": latents.float().contiguous()}, metadata=made_of)
