"""What a model is asked about one sequence, and what it answers: small, and sent between processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["mean", "bos", "max", "per_residue"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """One forward pass of one sequence.

    Raises:
        ValueError: there is no residue, or a range or position is outside of them.
    """

    tokens: bytes
    """Ids of ESM2's vocabulary: ``<cls>``, the residues, ``<eos>``."""

    layers: tuple[int, ...] = ()
    """Whose hidden states are wanted: 0 is the embedding, the last one is taken after the last norm, and negative ones
    count from the end, as in transformers' `hidden_states`."""

    poolings: tuple[Pooling, ...] = ()
    """How, for each layer: over the residues `kept`, without ``<cls>`` and ``<eos>``; `bos` is the state of ``<cls>``
    itself."""

    kept: range | None = None
    """The residues, from 0, that poolings are about; None: all. Of a window, those that no other window sees better."""

    contacts: bool = False

    logits_at: tuple[int, ...] | range = ()
    """The residues, from 0, whose logits are wanted."""

    def __post_init__(self) -> None:
        inside = range(len(self))
        if not inside:
            raise ValueError("a query needs the tokens of a residue at the least, between <cls> and <eos>")
        if self.kept is not None and (not self.kept or self.kept.step != 1 or not _within(self.kept, inside)):
            raise ValueError(f"kept must be residues that follow each other within {inside}, got {self.kept}")
        if not _within(self.logits_at, inside):
            raise ValueError(f"logits_at must be residues within {inside}, got {self.logits_at}")

    def __len__(self) -> int:
        """In residues."""
        return len(self.tokens) - 2


def _within(positions: tuple[int, ...] | range, inside: range) -> bool:
    return not positions or (min(positions) in inside and max(positions) in inside)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to a query; all in float32."""

    embeddings: Mapping[tuple[int, Pooling], Floats] = field(default_factory=dict)
    """By the layer as it was asked for and the pooling: [hidden size], and [residues kept, hidden size] for
    `per_residue`."""

    contacts: Floats | None = None
    """[L, L]: how likely two residues are to be within 8 angstroms; None where it was not asked."""

    logits: Floats | None = None
    """[positions asked, 33], over ESM2's vocabulary and not normalised; None where none was asked."""
