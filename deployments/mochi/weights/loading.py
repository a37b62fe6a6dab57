"""Loading the parts of a Mochi model in the layout of diffusers, straight to the device."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deployments.dtypes import DtypeName, WeightsName
from deployments.mochi.weights.parts import (
    DTYPES,
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    Part,
    PartPlan,
    plan_part,
    tied_names,
)
from deployments.mochi.weights.quantised_weights import check_weights, quantise, quantised_tensors
from deployments.mochi.weights.tensors import FileTensor, ReadOptions, read_tensors
from deployments.storage.models.positions import TENSOR as POSITIONS

if TYPE_CHECKING:
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

__all__ = ["DTYPES", "load_part", "load_text_encoder", "load_transformer", "load_vae"]

LINE_EVERY_S = 10.0
"""While a part is loaded, there is a line in the log this often."""
_logger = logging.getLogger("ray.serve")

Wanted = dict[str, tuple[FileTensor, torch.dtype]]
"""Tensors by name: where each is, and the dtype that it is cast to."""


def load_text_encoder(
    folder: Path, dtype: DtypeName, device: torch.device
) -> tuple["PreTrainedTokenizerBase", "T5EncoderModel"]:
    """The tokenizer and the T5 encoder, frozen, on `device`. For the errors see `load_part`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer"), load_part(folder, TEXT_ENCODER, dtype, device)


def load_transformer(
    folder: Path, dtype: DtypeName, device: torch.device, weights: WeightsName | None = None
) -> "MochiTransformer3DModel":
    """The diffusion transformer, frozen, on `device`; its `pos_frequencies` in float32 always.

    Args:
        weights: the form of 8 bits that its large weights are kept in; None: all are of `dtype`.

    Raises:
        PermanentError: `weights_unsupported`: the device cannot multiply with them; else as `load_part` does.
    """
    check_weights(weights, dtype, device)
    transformer = load_part(folder, TRANSFORMER, dtype, device, weights=weights)
    # By this diffusers tells the model's dtype from that of a tensor that is kept apart.
    transformer._keep_in_fp32_modules = [POSITIONS]
    return transformer


def load_vae(folder: Path, dtype: DtypeName, device: torch.device) -> "AutoencoderKLMochi":
    """The video autoencoder without its encoder half, frozen, on `device`. For the errors see `load_part`."""
    return load_part(folder, VAE, dtype, device)


def load_part(
    folder: Path,
    part: Part,
    dtype: DtypeName,
    device: torch.device,
    options: ReadOptions = ReadOptions(),
    weights: WeightsName | None = None,
) -> Any:
    """A part with the variant of its weights that fits `dtype`, every tensor of it read from the files.

    The module is made without memory, and each tensor read to where it is used: neither the host nor the device ever
    holds one twice. What is to be kept in 8 bits is read group by group, so the device never holds more than one group
    in `dtype`.

    Args:
        weights: of the transformer, see `load_transformer`.

    Raises:
        PermanentError: `model_incomplete`, `model_mismatch`, `model_unsupported`; names the file or the tensor.
    """
    plan = plan_part(folder, part, dtype)
    if plan.positions is None and POSITIONS in part.float32:
        _tell_rounded_positions(plan)
    with LoadProgress(part.name, plan.nbytes) as progress:
        if weights is None:
            tensors = read_tensors(plan.wanted, device, progress.add, options)
        else:
            tensors = _read_quantised(plan, device, progress.add, options, weights)
    if plan.positions is not None:
        tensors[POSITIONS] = plan.positions.to(device)
    return _assigned(plan, tensors, device).eval().requires_grad_(False)


def _read_quantised(
    plan: PartPlan, device: torch.device, progress: Callable[[int], object], options: ReadOptions, weights: WeightsName
) -> dict[str, Tensor]:
    """The tensors of the plan's transformer, whose layers are replaced."""
    quantisable = quantise(plan.module, weights)
    tensors: dict[str, Tensor] = {}
    for group in _groups(plan.wanted, options.group_bytes):
        for name, tensor in read_tensors(group, device, progress, options).items():
            tensors |= quantised_tensors(name, tensor, weights) if name in quantisable else {name: tensor}
    return tensors


def _groups(wanted: Wanted, nbytes: int) -> Iterator[Wanted]:
    """In the order of the files, each of about so many bytes of them, and one tensor at least."""
    group: Wanted = {}
    for name, (stored, dtype) in sorted(wanted.items(), key=lambda item: (str(item[1][0].path), item[1][0].offset)):
        group[name] = stored, dtype
        if sum(each.nbytes for each, _ in group.values()) >= nbytes:
            yield group
            group = {}
    if group:
        yield group


class LoadProgress:
    """What the log says while a part is loaded, and at its end.

    Args:
        name: of the part.
        total: bytes.
        now: seconds of a monotonic clock.
    """

    def __init__(self, name: str, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._total = total
        self._now = now
        self._lock = threading.Lock()
        self._done = 0
        self._begun = self._told = now()

    def __enter__(self) -> "LoadProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if kind is None:
            took = self._now() - self._begun
            _logger.info("%s loaded: %.2f GB in %.1f s, %s", self._name, self._total / 1e9, took, self._rate(took))

    def add(self, nbytes: int) -> None:
        """Count bytes that were read. Thread-safe."""
        with self._lock:
            self._done += nbytes
            now = self._now()
            if now - self._told < LINE_EVERY_S or self._done >= self._total:
                return
            self._told = now
        done, took = self._done / 1e9, now - self._begun
        _logger.info("%s: %.1f of %.1f GB read, %s", self._name, done, self._total / 1e9, self._rate(took))

    def _rate(self, took: float) -> str:
        return f"{self._done / max(took, 1e-9) / 1e9:.2f} GB/s"


def _tell_rounded_positions(plan: PartPlan) -> None:
    stored, _ = plan.wanted[POSITIONS]
    if stored.dtype not in (torch.float32, torch.float64):
        _logger.info("%s: %s is %s and nowhere float32; used as it is", plan.where, POSITIONS, stored.dtype)


def _assigned(plan: PartPlan, tensors: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The module of a plan with these tensors as its own."""
    module, same = plan.module, tied_names(plan.module)
    buffers = dict(module.named_buffers())
    found = {name: tensor if name in buffers else nn.Parameter(tensor, False) for name, tensor in tensors.items()}
    for name, source in same.items():
        if name in found:
            found.setdefault(source, found[name])
    for name, source in same.items():
        # Two tensors of the file that differ stay two, as the library leaves them.
        if name not in found or torch.equal(found[name], found[source]):
            found[name] = found[source]
    module.load_state_dict(found, strict=True, assign=True)
    return module.to(device)  # buffers that no file holds
