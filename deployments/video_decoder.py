"""Stage 3: latents to an mp4 and a poster."""

import tempfile
from pathlib import Path

import torch
from ray import serve
from safetensors.torch import load
from torch import Tensor

from deployments.connections import Connections, connect
from deployments.denoise import SPATIAL_COMPRESSION, latent_shape
from deployments.device import describe_device, replica_device, set_threads
from deployments.errors import PermanentError
from deployments.messages import ReplicaInfo, Stage, StageTask, VideoSpec, latents_key, poster_key, video_key
from deployments.mochi_model import load_vae
from deployments.model_store import model_folder
from deployments.mp4_encoder import Mp4Writer, poster
from deployments.running_task import RunningTask
from deployments.settings import WorkerSettings
from deployments.stage_worker import StageWorker
from deployments.streaming_decode import StreamingDecoder, denormalise, to_uint8

PARTS = ("vae",)


@serve.deployment
class VideoDecoder:
    """A replica of the decoder: one VAE, one thread, one job at a time; ffmpeg beside it."""

    def __init__(self, settings: WorkerSettings, connections: Connections | None = None) -> None:
        to = connections or connect(settings)
        self._device = replica_device()
        set_threads(settings.stage.torch_threads)
        model = settings.model
        folder = model_folder(model, PARTS, to.open_bucket)
        self._vae = load_vae(folder, model.dtype, self._device)
        self._decoder = StreamingDecoder(self._vae)
        self._store = to.store
        info = ReplicaInfo(to.replica, Stage.DECODING, 1, describe_device(self._device), model.name)
        self._worker = StageWorker(info, to.link)
        shape = (12, 2, model.height.minimum // SPATIAL_COMPRESSION, model.width.minimum // SPATIAL_COMPRESSION)
        self._worker.warm_up(lambda: list(self._decoder.decode(self._to_vae(torch.zeros(shape)))))

    async def run(self, task: StageTask) -> None:
        """Do one task; everything is told to the registry by reports."""
        await self._worker.run(task, self._decode)

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.close()

    async def _decode(self, running: RunningTask) -> None:
        job_id, clock = running.task.job_id, running.clock
        latents = load(await self._store.get(latents_key(job_id)))["latents"]
        clock.lap("load")
        with tempfile.TemporaryDirectory(prefix="mochi-serve-") as folder:
            path = Path(folder) / "video.mp4"
            image = await running.in_thread(self._write_video, running, latents, path)
            await self._store.put(poster_key(job_id), image, "image/webp")
            await self._store.put_file(video_key(job_id), path, "video/mp4")
        clock.lap("store")

    def _write_video(self, running: RunningTask, latents: Tensor, path: Path) -> bytes:
        """Write the mp4; returns the poster."""
        spec = running.task.spec
        check_latents(latents, spec)
        writer = Mp4Writer(path, spec.width, spec.height, spec.fps)
        try:
            image = self._feed(writer, running, latents)
            writer.finish()
        except BaseException:
            writer.kill()
            raise
        running.clock.lap("mp4")
        return image

    def _feed(self, writer: Mp4Writer, running: RunningTask, latents: Tensor) -> bytes:
        """Decode piece by piece into the writer; returns a poster of the middle frame."""
        spec, clock = running.task.spec, running.clock
        done, image = 0, b""
        running.progress(done, spec.num_frames)
        for piece in self._decoder.decode(self._to_vae(latents)):
            frames = to_uint8(piece).cpu()
            clock.lap("decode")
            writer.write(frames)
            middle = spec.num_frames // 2 - done
            if 0 <= middle < len(frames):
                image = poster(frames[middle])
            done += len(frames)
            clock.lap("mp4")
            running.progress(done, spec.num_frames)
        return image

    def _to_vae(self, latents: Tensor) -> Tensor:
        return denormalise(self._vae, latents.to(self._device)).to(self._vae.dtype)


def check_latents(latents: Tensor, spec: VideoSpec) -> None:
    """Refuse latents that are not the spec's.

    Raises:
        PermanentError: `latents_mismatch`.
    """
    if tuple(latents.shape) != latent_shape(spec):
        raise PermanentError(
            "latents_mismatch", f"stored latents are {tuple(latents.shape)}; the job needs {latent_shape(spec)}"
        )
