"""Clips of the model, made by the server's own code without a server."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deployments.messages import VideoSpec
from deployments.mochi.denoise import denoise_step, rope_tables, start_sample
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from deployments.mochi.weights.loading import load_transformer, load_vae
from deployments.prompts.prompt_encoder import TextEncoder
from models.shapes.evaluation.mp4 import through_mp4
from models.shapes.reading.reading import Frames

CPU = torch.device("cpu")


class Generator:
    """All parts of a model folder, on the CPU in fp32."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._encoder = TextEncoder(folder, "float32", CPU, max_tokens)
        self._transformer = load_transformer(folder, "float32", CPU)
        self._vae = load_vae(folder, "float32", CPU)
        self._decoder = StreamingDecoder(self._vae)

    def make(self, specs: Sequence[VideoSpec], batch: int) -> Iterator[Frames]:
        """A clip [F, H, W, 3] for each spec, in order, as ffmpeg reads it from its mp4.

        Args:
            specs: of one size and length.
            batch: how many are sampled at once.
        """
        for first in range(0, len(specs), batch):
            some = specs[first : first + batch]
            for spec, latents in zip(some, self.sample(some), strict=True):
                yield self.decode(latents, spec.fps)

    @torch.no_grad()
    def sample(self, specs: Sequence[VideoSpec]) -> list[Tensor]:
        """Latents [12, T, H/8, W/8] of each spec, all in one batch; those with fewer steps are done earlier.

        Raises:
            PermanentError: `prompt_too_long`.
        """
        rope = rope_tables(self._transformer, specs[0].clip.latents)
        embeds = [self._encoder.encode(spec.prompt, spec.negative_prompt) for spec in specs]
        samples = [start_sample(self._transformer, spec, each, rope) for spec, each in zip(specs, embeds, strict=True)]
        while any(not sample.done for sample in samples):
            stepped = iter(denoise_step(self._transformer, [sample for sample in samples if not sample.done]))
            samples = [sample if sample.done else next(stepped) for sample in samples]
        return [sample.latents for sample in samples]

    def sampling_seconds(self, spec: VideoSpec) -> float:
        """How long the sampling of one clip alone takes, its prompt encoded as well."""
        begun = time.perf_counter()
        self.sample([spec])
        return time.perf_counter() - begun

    def decode(self, latents: Tensor, fps: int) -> Frames:
        """A clip [F, H, W, 3] of latents [12, T, H/8, W/8], as ffmpeg reads it from its mp4."""
        pieces = [to_uint8(piece) for piece in self._decoder.decode(denormalise(self._vae, latents))]
        return through_mp4(torch.cat(pieces).numpy(), fps)


def vae_round_trip(folder: Path, clips: Sequence[Frames]) -> Iterator[Frames]:
    """Each clip encoded (to the middle of its distribution, no draw) and decoded by the model's autoencoder."""
    from diffusers import AutoencoderKLMochi

    vae = AutoencoderKLMochi.from_pretrained(folder / "vae").eval().requires_grad_(False)
    for clip in clips:
        video = torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 127.5 - 1
        decoded = vae.decode(vae.encode(video[None]).latent_dist.mode()).sample
        yield to_uint8(decoded[0]).numpy()
