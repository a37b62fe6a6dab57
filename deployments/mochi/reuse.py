"""First-block cache: what the blocks after the first add to a row is kept at one step and used at the next ones.

Between neighbouring steps the sum of what all blocks but the first change differs little (ParaAttention's first-block
cache). Which steps are computed in full is planned ahead (`deployments.step_rules`), for each sample by itself: rows of
a pass that are and rows that are not go their ways after the first block, and meet again after the last.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Residual = tuple[Tensor, ...]
"""Of each row of a sample, the negative prompt's first: [N, D] in the model's dtype."""

T = TypeVar("T")


class PassReuse:
    """Which rows of one forward pass go through all blocks, and what the others take instead.

    Args:
        held: of each row [N, D], what it reuses; None for a row that is computed in full.
        kept: of each row, whether a later step reuses it.
    """

    def __init__(self, held: Sequence[Tensor | None], kept: Sequence[bool]) -> None:
        self._held = list(held)
        self._kept = kept
        self._full = [row for row, residual in enumerate(held) if residual is None]

    def full(self, of_rows: Sequence[T]) -> list[T]:
        """Those of the rows that are computed in full."""
        return [of_rows[row] for row in self._full]

    def full_rows(self, tensor: Tensor) -> Tensor:
        """[B, ...] to [rows that are computed in full, ...]."""
        if len(self._full) == tensor.shape[0]:
            return tensor
        # No index tensor, which would be copied to the device.
        return torch.stack(self.full(tensor.unbind())) if self._full else tensor[:0]

    def join(self, early: Tensor, late: Tensor) -> Tensor:
        """All rows after the last block; what is to be kept of those that were computed is kept.

        Args:
            early: [B, N, D] after the first block.
            late: [rows that are computed in full, N, D] after the last block.
        """
        rows: list[Tensor] = []
        computed = iter(late.unbind())
        for row, (before, residual) in enumerate(zip(early.unbind(), self._held, strict=True)):
            after = next(computed) if residual is None else before + residual
            if residual is None and self._kept[row]:
                self._held[row] = after - before
            rows.append(after)
        return late if len(self._full) == len(rows) else torch.stack(rows)

    @property
    def residuals(self) -> list[Tensor | None]:
        """After `join`: of each row, what later steps reuse; None if none does."""
        return [held if kept else None for held, kept in zip(self._held, self._kept, strict=True)]
