"""The transformer block through torch's compiler: few graphs for every prompt, length, number of rows and shape.

Three things would make the compiler begin anew. Prompts differ in length: text is padded to one length here, and
attention is one operator, which reads from a tensor on the host how long each row is and which it does in 8 bits.
Videos differ in tokens and batches in rows: these dimensions are marked as dynamic. A single row is another graph by
torch's rules, and the last block, which leaves the text alone, another one: four in all, or as many again where some
attentions have packed weights and others have not.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._dynamo as dynamo
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.types import GuardFail
from torch._inductor import config as inductor_config
from torch.fx.experimental import _config as symbols_config

from deployments.metrics import names
from deployments.metrics.recorder import RECORDER
from deployments.mochi.block import (
    AttendedRow,
    Rope,
    block_around,
    joint_mask,
    norm_heads,
    project_out,
    rotate,
    run_block,
)
from deployments.mochi.fp8_attention import attend_fp8
from deployments.mochi.full_attention import DEVICE_ERRORS, attend_full
from deployments.mochi.packed_weights import Layers, packed_weight, text_projections, video_projections

GRAPH_LIMIT = 32  # of one process, after which the compiler refuses; torch's own 8 may be too few
COMPILE_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)  # of the compiler, not of what it compiled

_logger = logging.getLogger("ray.serve")


@torch.library.custom_op("mochi_serve::joint_attention", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, told: Tensor, video: int) -> tuple[Tensor, Tensor]:
    """Attention of each row among its first tokens; zero for those behind.

    Args:
        query, key, value: [B, S, heads, d], video tokens and behind them text.
        told: [B, 2] int64 on the CPU, so that reading it waits for no device: tokens of each row, S at most; 1 where
            it is attended in 8 bits.
        video: how many of S are video tokens.

    Returns:
        The video tokens [B, video, heads, d] and those of the text [B, S - video, heads, d], both contiguous.
    """
    rows, tokens, *head = query.shape
    of_video = query.new_empty(rows, video, *head)
    of_text = query.new_zeros(rows, tokens - video, *head)
    for row, (length, fp8) in enumerate(told.tolist()):
        attend_row = attend_fp8 if fp8 else attend_full
        out = attend_row(*(part[row, :length] for part in (query, key, value)))
        of_video[row] = out[:video]
        of_text[row, : length - video] = out[video:]
    return of_video, of_text


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, told: Tensor, video: int) -> tuple[Tensor, Tensor]:
    rows, tokens, *head = query.shape
    return query.new_empty(rows, video, *head), query.new_empty(rows, tokens - video, *head)


class CompiledBlock:
    """A `RunBlock` that compiles each graph at the first call that needs it, and runs it from then on.

    Where the compiler fails, on a machine without a C++ compiler or without Triton, it is `run_block` from then on: the
    log and `failure` say why.

    Args:
        text_tokens: of the longest prompt; all text is padded to it.
        backend: torch's name of what compiles the graphs.
    """

    def __init__(self, text_tokens: int, backend: str = "inductor") -> None:
        self.graphs = 0
        """Compiled so far."""
        self.recompilations = 0
        """Of `graphs`, those compiled after `settle`: samples waited for them."""
        self.failure: str | None = None
        """Why the compiler failed; None if it did not."""
        self._text_tokens = text_tokens
        self._settled = False
        self._backend = lookup_backend(backend)
        self._failed_guards: list[str] = []  # since a call began, one of each graph that did not fit it
        # `torch.compile`, and with it the reason of each compilation.
        compiler = dynamo.optimize(self._compile_graph, nopython=True, guard_fail_fn=self._note_failed_guard)
        self._compiled: Callable[..., tuple[Tensor, Tensor]] = compiler(_block)

    def settle(self) -> None:
        """Say that all graphs should be there: one that is compiled from now on is logged and counted."""
        self._settled = True

    def __call__(
        self,
        block: Any,
        video: Tensor,
        text: Tensor,
        activated: Tensor,
        rows: Sequence[AttendedRow],
        mask: Tensor | None,
        rope: Rope,
    ) -> tuple[Tensor, Tensor]:
        """As `run_block`, but for rounding and the text that is returned, which is padded; `mask` is not read."""
        if self.failure is None:
            missing = self._text_tokens - text.shape[1]
            padded = F.pad(text, (0, 0, 0, missing)) if missing > 0 else text
            try:
                return self._run(block, video, padded, activated, rows, torch.view_as_real(rope))
            except Exception as error:
                self._fail(error)
        # A block before this one may have padded the text.
        mask = joint_mask(rows, video.shape[1], text.shape[1], video.device)
        return run_block(block, video, text, activated, rows, mask, rope)

    def _run(
        self, block: Any, video: Tensor, text: Tensor, activated: Tensor, rows: Sequence[AttendedRow], rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        told = torch.tensor([(video.shape[1] + row.text, row.fp8) for row in rows])
        for tensor in (video, text, activated, told):
            if tensor.shape[0] > 1:  # the compiler makes one row a case of its own
                dynamo.mark_dynamic(tensor, 0)
        dynamo.mark_dynamic(video, 1)
        dynamo.mark_dynamic(rope, 0)
        attn = block.attn1
        packed = packed_weight(video_projections(attn)), packed_weight(text_projections(attn))
        graphs = self.graphs
        self._failed_guards.clear()
        begun = time.perf_counter()
        with _compiler_limits():
            out = self._compiled(block, video, text, activated, told, rope, *packed)
        if self.graphs > graphs:
            RECORDER.observe(names.COMPILE_SECONDS, time.perf_counter() - begun)
        if self._settled and self.graphs > graphs:
            self.recompilations += 1
            RECORDER.count(names.RECOMPILES)
            _logger.warning(
                "a block was compiled again in %.1f s while samples waited; guards that failed: %s",
                time.perf_counter() - begun,
                "; ".join(self._failed_guards) or "none is told",
            )
        return out

    def _compile_graph(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        # Kernels are not chosen by how long they take today: one start computes the same bits as the next.
        with inductor_config.patch(deterministic=True):
            return self._backend(graph, inputs)

    def _note_failed_guard(self, failed: GuardFail) -> None:
        lines = failed.reason.splitlines()
        self._failed_guards.append(lines[0][:200] if lines else "unknown")

    def _fail(self, error: Exception) -> None:
        """Note the failure, or raise what is none of the compiler's.

        While the first graphs are compiled, whatever is raised is held against it: the eager block, which is tried
        next, raises the same again if it is not to blame.
        """
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, DEVICE_ERRORS):
            raise cause
        if self._settled and not isinstance(error, COMPILE_ERRORS):
            raise error
        self.failure = f"{type(cause).__name__}: {cause}".strip().splitlines()[0][:300]
        _logger.warning("the blocks cannot be compiled here and run slower without: %s", self.failure)


@contextmanager
def _compiler_limits() -> Iterator[None]:
    """Two dimensions that happen to be equal stay two: by default a batch of 8 rows of 8 tokens would tie them."""
    with ExitStack() as stack:
        stack.enter_context(dynamo.config.patch(recompile_limit=GRAPH_LIMIT))
        stack.enter_context(symbols_config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
        yield


def _block(
    block: Any,
    video: Tensor,
    text: Tensor,
    activated: Tensor,
    told: Tensor,
    rope: Tensor,
    packed: Tensor | None,
    packed_text: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What is compiled. told: see `attend`. packed: see `packed_weight`, of video and text."""

    def attention(attn: Any, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = _heads(attn, video_projections(attn), video, packed)
        text_query, text_key, text_value = _heads(attn, text_projections(attn), text, packed_text)
        of_video, of_text = attend(
            torch.cat([rotate(norm_heads(query, attn.norm_q), rope), norm_heads(text_query, attn.norm_added_q)], dim=1),
            torch.cat([rotate(norm_heads(key, attn.norm_k), rope), norm_heads(text_key, attn.norm_added_k)], dim=1),
            torch.cat([value, text_value], dim=1),
            told,
            video.shape[1],
        )
        return project_out(attn, of_video.flatten(2), of_text.flatten(2))

    return block_around(attention, block, video, text, activated)


def _heads(attn: Any, layers: Layers, tokens: Tensor, packed: Tensor | None) -> Sequence[Tensor]:
    """Queries, keys and values, each [B, N, heads, d]."""
    rows, count, _ = tokens.shape
    if packed is None:
        return [layer(tokens).view(rows, count, attn.heads, -1) for layer in layers]
    return F.linear(tokens, packed).view(rows, count, len(layers), attn.heads, -1).unbind(2)
