"""The trained networks as the folder that `MochiPipeline.from_pretrained` loads."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline

from deployments.mochi.preview import FILE as PREVIEW_FILE
from deployments.mochi.preview import PreviewFit, to_json
from deployments.mochi.streaming_decode import StreamingDecoder, denormalise, to_uint8
from models.shapes.training.latents import LatentClips
from models.shapes.training.tokenizer import new_tokenizer
from models.shapes.training.transformer import TextToVideo

LOG_FILE = "training.json"
SUMS_FILE = "SHA256SUMS"
PREVIEW_CLIPS = 24
WEIGHTS = torch.bfloat16


def export(out: Path, model: TextToVideo, vae: AutoencoderKLMochi) -> None:
    """Write the pipeline, its weights in bfloat16."""
    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae.to("cpu", WEIGHTS),
        text_encoder=model.text_encoder.to("cpu", WEIGHTS),
        # A new one: a tokenizer that was used keeps, and saves, how it padded.
        tokenizer=new_tokenizer(),
        transformer=model.transformer.to("cpu", WEIGHTS),
    )
    pipeline.save_pretrained(out)


@torch.no_grad()
def write_preview(out: Path, vae: AutoencoderKLMochi, clips: LatentClips) -> float:
    """Fit the map that previews are made with, over drawn clips. Returns how much of the variance it explains."""
    decoder = StreamingDecoder(vae.float())
    fit = PreviewFit()
    for latents in clips.latents[:PREVIEW_CLIPS].float():
        for index, piece in enumerate(decoder.decode(denormalise(vae, latents))):
            fit.add(latents[:, index], to_uint8(piece))
    preview = fit.solve()
    (out / PREVIEW_FILE).write_text(to_json(preview))
    return fit.r_squared(preview)


def write_log(out: Path, device: torch.device, stages: dict[str, Any]) -> None:
    """What was done, for how long, on what."""
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    log = {"versions": versions, "device": _name(device), "stages": stages}
    (out / LOG_FILE).write_text(json.dumps(log) + "\n")


def write_sums(out: Path, names: Sequence[str]) -> None:
    """The checksums of files of the folder, as `sha256sum -c` reads them."""
    lines = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names)]
    (out / SUMS_FILE).write_text("".join(lines))


def model_files(out: Path) -> list[str]:
    """What makes up the model: the pipeline's files and the preview map."""
    parts = sorted(path for path in out.glob("*/*") if path.suffix in (".json", ".safetensors"))
    return [str(path.relative_to(out)) for path in (out / "model_index.json", out / PREVIEW_FILE, *parts)]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
