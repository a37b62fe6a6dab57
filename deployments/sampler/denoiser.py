"""The transformer on its device: it makes samples of stored states, and steps them."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deployments.clip import LatentShape
from deployments.errors import TransientError, WorkerError
from deployments.messages import VideoSpec
from deployments.mochi.block import Rope, RunBlock, run_block
from deployments.mochi.denoise import Sample, denoise_step, rope_tables, start_sample
from deployments.mochi.full_attention import attention_name
from deployments.mochi.loras import Loras
from deployments.mochi.probe import probe_batches, probe_sample
from deployments.replica.device_check import check_arithmetic
from deployments.sampler.memory_measure import probe_shapes
from deployments.sampler.state import SampleState
from deployments.settings import ModelSettings, SamplingSettings
from deployments.step_rules import StepRules
from deployments.storage.models.store import default_cache

if TYPE_CHECKING:
    from diffusers import MochiTransformer3DModel

    from deployments.mochi.compiled_block import CompiledBlock

COMPILED = "compiled"  # the folder of compiled kernels in the models' cache
COMPILED_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own; where it is set, the kernels are kept there

_logger = logging.getLogger("ray.serve")


def compiled_block(
    transformer: "MochiTransformer3DModel", model: ModelSettings, sampling: SamplingSettings, cache: Path | None = None
) -> "CompiledBlock | None":
    """What compiles the transformer's blocks, if `sampling.compile` and the device call for it; else None.

    The weights are then laid as `pack_projections` does it.

    Args:
        transformer: on its device.
        cache: the models' cache folder, which keeps the kernels for the next start; by default `default_cache()`.
    """
    on_cuda = transformer.proj_out.weight.is_cuda
    if not (on_cuda if sampling.compile == "auto" else sampling.compile):
        return None
    _keep_kernels((cache or default_cache()) / COMPILED)
    # Not above: they take a second to load.
    from deployments.mochi.compiled_block import CompiledBlock
    from deployments.mochi.packed_weights import pack_projections

    pack_projections(transformer)
    return CompiledBlock(model.max_sequence_length)


def _keep_kernels(folder: Path) -> None:
    """Have the compiler keep what it makes in `folder`; where that cannot be written, torch's temporary one remains."""
    if os.environ.get(COMPILED_VARIABLE):
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # torch runs what it finds there
    except OSError as error:
        _logger.warning("compiled kernels cannot be kept in %s, so each start makes them anew: %s", folder, error)
        return
    os.environ[COMPILED_VARIABLE] = str(folder)


class Denoiser:
    """A transformer, its LoRAs, and the rotary tables of the shapes that are in use.

    Its methods run on the loop's thread.

    Args:
        transformer: on its device.
        min_step_s: seconds that a step takes at least.
        compiled: see `compiled_block`.
        rows_at_once: of a forward pass, see `denoise_step`.
        loras: of the transformer; none by default.
    """

    def __init__(
        self,
        transformer: "MochiTransformer3DModel",
        min_step_s: float,
        compiled: "CompiledBlock | None" = None,
        rows_at_once: int | None = None,
        loras: Loras | None = None,
    ) -> None:
        self._transformer = transformer
        self._loras = loras or Loras(transformer, {})
        self._compiled = compiled
        self._device = transformer.proj_out.weight.device
        self._min_step_s = min_step_s
        self._rows_at_once = rows_at_once
        self._rope: dict[LatentShape, Rope] = {}

    @property
    def block(self) -> RunBlock:
        """What runs the transformer's blocks in passes without a LoRA; the others are run by `run_block`.

        A LoRA has layers of its own, and its scale is one of a request's: compiled, each would take graphs of its own.
        """
        return self._compiled if self._compiled is not None and self._compiled.failure is None else run_block

    @property
    def recompilations(self) -> int:
        """Graphs that were compiled after `warm_up`, while samples waited; each is in the log with its reason."""
        return 0 if self._compiled is None else self._compiled.recompilations

    @property
    def note(self) -> str:
        """For people, how the blocks run; empty where they are not to be compiled and torch chooses the attention."""
        config = self._transformer.config
        size = config.num_attention_heads, config.attention_head_dim
        told = [attention_name(self._device, self._transformer.proj_out.weight.dtype, *size)]
        if self._compiled is not None:
            failure = self._compiled.failure
            told.insert(0, "compiled" if failure is None else f"not compiled ({failure})")
        return ", ".join(filter(None, told))

    def prepare(self, state: SampleState, others: Sequence[Sample]) -> Sample:
        """The sample of this state, on the device.

        Args:
            others: the samples in the loop; rotary tables of shapes that none of them has are dropped.

        Raises:
            PermanentError: `lora_unknown`, there is no such LoRA.
        """
        shape = state.spec.clip.latents
        if shape not in self._rope:
            in_use = {tuple(sample.latents.shape) for sample in others}
            self._rope = {kept: rope for kept, rope in self._rope.items() if kept in in_use}
            self._rope[shape] = rope_tables(self._transformer, shape)
        with self._loras.applied(state.spec.lora_choice):
            sample = start_sample(self._transformer, state.spec, state.embeds, self._rope[shape])
        return replace(sample, latents=state.latents.to(self._device), step=state.step)

    def step(self, samples: Sequence[Sample]) -> list[Sample | WorkerError]:
        """One step of a batch, whose samples have one LoRA or none.

        It returns when the device has done it, so that progress is true and a stop is prompt.

        Returns:
            Each sample one step on, or TransientError `non_finite_latents` for one whose latents hold a NaN or an
            infinity from this step on: the others of the batch have no part in it.

        Raises:
            TransientError: `device_broken`: there was such a sample, and the device cannot multiply.
        """
        begun = time.perf_counter()
        lora = samples[0].lora
        with self._loras.applied(lora):
            block = self.block if lora is None else run_block
            stepped = denoise_step(self._transformer, samples, block, self._rows_at_once)
        finite = finite_when_done([sample.latents for sample in stepped])
        if not all(finite):
            check_arithmetic(self._device)
        time.sleep(max(0.0, self._min_step_s - (time.perf_counter() - begun)))
        return [sample if good else _non_finite(sample) for sample, good in zip(stepped, finite, strict=True)]

    @torch.no_grad()
    def warm_up(self, model: ModelSettings) -> None:
        """Steps that no sample shall pay for: of the smallest video of the model, and all that must be compiled.

        The compiler chooses its kernels by the first shape that it sees, so that is one of a middle size.
        """
        smallest = VideoSpec("", "", model.width.minimum, model.height.minimum, model.num_frames.minimum, 1, 2, 2.0, 0)
        probe = probe_sample(self._transformer, smallest.clip.latents, model.max_sequence_length)
        in_fp8 = [[replace(probe, rules=StepRules(attention="fp8"))]] if model.attends_in_fp8 else []
        if self._compiled is None:
            for samples in ([probe], *in_fp8):
                self._warm_up_step(samples)
            return
        begun, graphs = time.perf_counter(), self._compiled.graphs
        for shape in (probe_shapes(model)[1], smallest.clip.latents):
            for samples in probe_batches(self._transformer, shape, model.max_sequence_length):
                self._warm_up_step(samples)
        for samples in in_fp8:
            self._warm_up_step(samples)
        self._compiled.settle()
        made = self._compiled.graphs - graphs
        if made and self._compiled.failure is None:
            _logger.info("%d graphs of blocks were compiled in %.0f s", made, time.perf_counter() - begun)

    def _warm_up_step(self, samples: Sequence[Sample]) -> None:
        denoise_step(self._transformer, samples, self.block, self._rows_at_once)
        self._synchronize()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def finite_when_done(latents: Sequence[Tensor]) -> list[bool]:
    """Wait until their device has done all its work; then whether each tensor holds numbers only.

    The answers are on their way to the host before the wait begins, so they cost no second one.
    """
    flags = torch.stack([torch.isfinite(each).all() for each in latents])
    if flags.device.type != "cuda":
        return flags.tolist()
    on_host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    on_host.copy_(flags, non_blocking=True)
    torch.cuda.synchronize(flags.device)
    return on_host.tolist()


def _non_finite(sample: Sample) -> TransientError:
    what = f"sampling gave NaN or infinity in step {sample.step} of {sample.num_steps}"
    return TransientError("non_finite_latents", what)
