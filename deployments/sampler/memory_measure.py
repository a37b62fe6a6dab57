"""What a sample takes of this device's memory, measured once and kept, and how much memory there is.

Measurements on the CPU are noisy (see `peak_memory`). Three things keep the noise from harm: the highest of several
steps counts, the line lies above every measurement, and a token never costs less than what attention surely holds of
it at once.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from deployments.atomic_write import write_atomically
from deployments.clip import GUIDED_ROWS, LATENT_CHANNELS, PATCH, SPATIAL_COMPRESSION, LatentShape, latent_tokens
from deployments.mochi.block import RunBlock, run_block
from deployments.mochi.denoise import denoise_step
from deployments.mochi.probe import probe_sample
from deployments.replica.host import describe_device, one_thread
from deployments.replica.host_memory import available_bytes, total_bytes
from deployments.sampler.memory_profile import MemoryProfile, fit_line
from deployments.sampler.peak_memory import cuda_peak, process_peak
from deployments.settings import ModelSettings
from deployments.storage.models.store import default_cache

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel

FORMAT = "mochi-serve-memory-3"
FOLDER = "memory"  # in the models' cache
HEADROOM = 0.05  # of the device's whole memory, that is left to others

PROBE_SIDE = 256 // SPATIAL_COMPRESSION  # latents of a side of the probes' pictures, at most
TEXTS_PER_PROBE = 4  # tokens of the small probe, in those of the longest prompt
PROBE_RATIO = 4  # tokens of the large probe, in those of the small one
STEPS = 3  # of each probe, of which the one that takes most counts

ATTENTION_TENSORS = 8  # of a token's width, that attention surely holds at once
LATENT_COPIES = 2  # of a sample's latents between steps: its newest and the one before

_logger = logging.getLogger("ray.serve")


def memory_budget(device: torch.device, fraction: float | None = None) -> int:
    """Bytes for samples: what is free now, with the weights loaded, less 5 % of the device's whole memory.

    CUDA: memory that torch's allocator holds but does not use counts as free. CPU: the machine's memory, or the
    container's where that is less; what other processes take later is not foreseen.

    Args:
        fraction: of a GPU's memory, that this process may take at most: then that counts, and not what is free now,
            which depends on who has started before.
    """
    if device.type == "cuda" and fraction is not None:
        _, total = torch.cuda.mem_get_info(device)
        return share_budget(total, torch.cuda.memory_allocated(device), fraction)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = available_bytes()
        total = total_bytes()
    return max(0, free - int(HEADROOM * total))


def share_budget(total: int, weights: int, fraction: float) -> int:
    """Bytes for samples of a process that may take a part of a GPU's memory, less 5 % of that part for what the
    allocator cannot use.

    Args:
        total: bytes of the GPU.
        weights: bytes that are allocated already.
        fraction: of the GPU's memory.
    """
    return max(0, int((1 - HEADROOM) * fraction * total) - weights)


def probe_shapes(model: ModelSettings) -> tuple[LatentShape, LatentShape]:
    """Two shapes to measure, the second of 4 times the tokens; never the model's largest.

    Pictures of the smallest size (at most 256 x 256), as many latent frames as it takes for four times the tokens of
    the text: below that the text's share bends the line, above it is straight (1,024 and 4,096 tokens foretell the
    full-size model's memory exactly, 512 and 2,048 are 6 % short at 44,520).
    """
    height, width = (min(side.minimum // SPATIAL_COMPRESSION, PROBE_SIDE) for side in (model.height, model.width))
    frame = latent_tokens((LATENT_CHANNELS, 1, height, width))
    frames = max(2, -(-TEXTS_PER_PROBE * model.max_sequence_length // frame))
    return (LATENT_CHANNELS, frames, height, width), (LATENT_CHANNELS, PROBE_RATIO * frames, height, width)


@torch.no_grad()
def measure(
    transformer: "MochiTransformer3DModel",
    shapes: Sequence[LatentShape],
    text_tokens: int,
    block: RunBlock = run_block,
    rows_at_once: int | None = None,
) -> MemoryProfile:
    """Run a few steps of a guided sample of each shape, with prompts of full length. Nothing else may run beside.

    Args:
        shapes: of the latents, at least two of different numbers of tokens.
        text_tokens: the longest prompt.
        block: what runs the transformer's blocks in steps of samples.
        rows_at_once: of a forward pass, see `denoise_step`.

    Raises:
        ValueError: fewer than two sizes.
    """
    weight = transformer.proj_out.weight
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    rows = min(GUIDED_ROWS, rows_at_once or GUIDED_ROWS)
    used = [guided_step_bytes(transformer, shape, text_tokens, block, rows_at_once) for shape in shapes]
    per_row = [(latent_tokens(shape), -(-each // rows)) for shape, each in zip(shapes, used, strict=True)]
    slope, intercept = fit_line(per_row, least_slope=ATTENTION_TENSORS * width * weight.element_size())
    return MemoryProfile(
        step_token_bytes=slope,
        step_row_bytes=intercept,
        held_token_bytes=LATENT_COPIES * LATENT_CHANNELS * PATCH**2 * torch.float32.itemsize,
        held_row_bytes=text_tokens * transformer.time_embed.caption_proj.out_features * weight.element_size(),
        table_token_bytes=width * torch.float32.itemsize,
        kept_token_bytes=width * weight.element_size(),
        rows_at_once=rows_at_once or 0,
    )


@torch.no_grad()
def guided_step_bytes(
    transformer: "MochiTransformer3DModel",
    shape: LatentShape,
    text_tokens: int,
    block: RunBlock = run_block,
    rows_at_once: int | None = None,
) -> int:
    """The most that a step took of several, after one that sets up what is kept for good."""
    sample = probe_sample(transformer, shape, text_tokens)
    peak = cuda_peak if sample.latents.is_cuda else process_peak
    # While other replicas start on the same cores, threads that wait for each other take seconds for a step; what a
    # second thread needs of its own is scratch space. What was compiled for one number of threads would be compiled
    # again for another.
    with one_thread() if block is run_block else nullcontext():
        denoise_step(transformer, [sample], block, rows_at_once)
        return max(peak(lambda: denoise_step(transformer, [sample], block, rows_at_once)) for _ in range(STEPS))


Measure = Callable[["MochiTransformer3DModel", Sequence[LatentShape], int], MemoryProfile]

Form = Literal["eager", "compiled"]
"""Of the blocks that are measured."""


def memory_profile(
    transformer: "MochiTransformer3DModel",
    model: ModelSettings,
    revision: str,
    cache: Path | None = None,
    measure: Measure = measure,
    form: Form = "eager",
    rows_at_once: int | None = None,
) -> MemoryProfile:
    """The profile of this model on this device: from the cache folder, or measured now and kept there.

    Args:
        revision: of the transformer, see `models.store.model_fingerprint`, and of what else `measure` steps with.
        cache: the models' cache folder; by default `models.store.default_cache()`.
        form: of the blocks that `measure` runs.
        rows_at_once: of the forward passes that it runs.
    """
    key = _key(transformer, model, revision, form) | {"rows_at_once": str(rows_at_once or "all")}
    path = (cache or default_cache()) / FOLDER / f"{_name(key)}.json"
    kept = _read(path, key)
    if kept is not None:
        return kept
    profile = measure(transformer, probe_shapes(model), model.max_sequence_length)
    _logger.info("a step takes %d bytes for each token of a row on %s", profile.step_token_bytes, key["device"])
    _write(path, key, profile)
    return profile


def _key(transformer: "MochiTransformer3DModel", model: ModelSettings, revision: str, form: Form) -> dict[str, str]:
    """All that a measurement depends on."""
    return {
        "format": FORMAT,
        "revision": revision,
        "device": describe_device(transformer.proj_out.weight.device),
        "dtype": model.dtype,
        "blocks": form,
        "shapes": str(probe_shapes(model)),
        "text_tokens": str(model.max_sequence_length),
        "torch": torch.__version__,
    }


def _name(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, key: dict[str, str]) -> MemoryProfile | None:
    """The kept profile; None when there is none, with a log line when it is damaged."""
    try:
        data = json.loads(path.read_text())
        if data["key"] != key:
            raise ValueError("it is of another model or device")
        return MemoryProfile(**{name: int(value) for name, value in data["profile"].items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _logger.warning("%s is damaged and measured anew: %r", path, error)
        return None


def _write(path: Path, key: dict[str, str], profile: MemoryProfile) -> None:
    """A cache folder that cannot be written only costs the next start its measurement."""
    text = json.dumps({"key": key, "profile": asdict(profile)}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        _logger.warning("the memory profile could not be kept in %s: %s", path, error)
