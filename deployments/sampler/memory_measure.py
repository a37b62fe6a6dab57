"""Measuring what a sample costs on this device, once, and how much memory there is.

On CUDA the allocator tells exactly. On the CPU the process's high-water mark is read around a step: it counts what
libraries take beside torch (the included model: 1.3 to 1.8 times what torch asks for), but noise of some 100 kB, and
more on machines with many cores, where the kernel counts in batches, blurs small models. Three things keep noise from
harm: the highest of several steps counts, the line lies above every measurement, and a token never costs less than
what attention surely holds of it at once.
"""

import ctypes
import hashlib
import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deployments.atomic_write import write_atomically
from deployments.clip import GUIDED_ROWS, LATENT_CHANNELS, PATCH, SPATIAL_COMPRESSION, LatentShape, latent_tokens
from deployments.mochi.denoise import Sample, condition, denoise_step, rope_tables, sigma_schedule
from deployments.replica.host import available_bytes, describe_device, total_bytes
from deployments.sampler.memory_profile import MemoryProfile, fit_line
from deployments.settings import ModelSettings
from deployments.storage.model_store import default_cache

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel

FORMAT = "mochi-serve-memory-1"
FOLDER = "memory"
STEPS = 3
HEADROOM = 0.05
PROBE_SIDE = 256 // SPATIAL_COMPRESSION
TEXTS_PER_PROBE = 4
PROBE_RATIO = 4
ATTENTION_TENSORS = 8
LATENT_COPIES = 2

_logger = logging.getLogger("ray.serve")


def memory_profile(
    transformer: "MochiTransformer3DModel", model: ModelSettings, revision: str, cache: Path | None = None
) -> MemoryProfile:
    """The profile of this model on this device: from the cache folder, or measured now and kept there.

    Args:
        revision: see `model_store.model_fingerprint`.
        cache: the models' cache folder; by default `model_store.default_cache()`.
    """
    key = _key(transformer, model, revision)
    path = (cache or default_cache()) / FOLDER / f"{_name(key)}.json"
    kept = _read(path, key)
    if kept is not None:
        return kept
    profile = measure(transformer, probe_shapes(model), model.max_sequence_length)
    _logger.info("a step takes %d bytes for each token of a row on %s", profile.step_token_bytes, key["device"])
    _write(path, key, profile)
    return profile


def memory_budget(device: torch.device) -> int:
    """Bytes for samples: what is free now, with the weights loaded, less 5 % of the device's whole memory.

    CUDA: memory that torch's allocator holds but does not use counts as free. CPU: the machine's memory, or the
    container's where that is less; what other processes take later is not foreseen.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free, total = available_bytes(), total_bytes()
    return max(0, free - int(HEADROOM * total))


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
def measure(transformer: "MochiTransformer3DModel", shapes: Sequence[LatentShape], text_tokens: int) -> MemoryProfile:
    """Run a few steps of a guided sample of each shape, with prompts of full length. Nothing else may run beside.

    Args:
        shapes: of the latents, at least two of different numbers of tokens.
        text_tokens: the longest prompt.

    Raises:
        ValueError: fewer than two sizes.
    """
    weight, config = transformer.proj_out.weight, transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    points = [(latent_tokens(shape), _guided_step_bytes(transformer, shape, text_tokens)) for shape in shapes]
    per_row = [(tokens, -(-used // GUIDED_ROWS)) for tokens, used in points]
    slope, intercept = fit_line(per_row, least_slope=ATTENTION_TENSORS * width * weight.element_size())
    return MemoryProfile(
        step_token_bytes=slope,
        step_row_bytes=intercept,
        held_token_bytes=LATENT_COPIES * LATENT_CHANNELS * PATCH**2 * torch.float32.itemsize,
        held_row_bytes=text_tokens * transformer.time_embed.caption_proj.out_features * weight.element_size(),
        table_token_bytes=width * torch.float32.itemsize,
    )


def _guided_step_bytes(transformer: "MochiTransformer3DModel", shape: LatentShape, text_tokens: int) -> int:
    """The most that a step took of several, after one that sets up what is kept for good."""
    row = _probe(transformer, shape, text_tokens)
    peak = _cuda_peak if row.latents.is_cuda else _process_peak
    with _one_thread():
        denoise_step(transformer, [row])
        return max(peak(lambda: denoise_step(transformer, [row])) for _ in range(STEPS))


@contextmanager
def _one_thread() -> Iterator[None]:
    """While other replicas start on the same cores, threads that wait for each other take seconds for a step; what
    a second thread needs of its own is scratch space."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _probe(transformer: "MochiTransformer3DModel", shape: LatentShape, text_tokens: int) -> Sample:
    device = transformer.proj_out.weight.device
    embeds = torch.zeros(text_tokens, transformer.config.text_embed_dim)
    text = condition(transformer, embeds, torch.ones(text_tokens, dtype=torch.bool))
    return Sample(
        latents=torch.zeros(shape, device=device),
        step=0,
        sigmas=sigma_schedule(2).to(device),
        guidance_scale=2.0,
        prompt=text,
        negative=text,
        rope=rope_tables(transformer, shape),
    )


def _cuda_peak(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def _process_peak(work: Callable[[], object]) -> int:
    """How far `work` takes the process's memory above where it is; never negative.

    Linux: freed memory that malloc keeps is given back first, or `work` would use it unseen; then the high-water mark
    is reset. Elsewhere, and where /proc is not writable, the mark cannot be reset: it only shows what goes above the
    highest point since the process began.
    """
    _give_back_freed()
    before = _reset_high_water()
    work()
    return max(0, _high_water() - before)


def _give_back_freed() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _reset_high_water() -> int:
    """Bytes that the process has now, or its highest so far where the mark cannot be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _high_water()
    return _status_bytes("VmRSS")


def _high_water() -> int:
    try:
        return _status_bytes("VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _key(transformer: "MochiTransformer3DModel", model: ModelSettings, revision: str) -> dict[str, str]:
    """All that a measurement depends on."""
    return {
        "format": FORMAT,
        "revision": revision,
        "device": describe_device(transformer.proj_out.weight.device),
        "dtype": model.dtype,
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
