"""Sequences drawn at random, and what transformers alone makes of one of them."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from deployments.proteins.alphabet import LETTERS, MASKED, ProteinSequence

LETTERS_AND_MASKS = LETTERS + MASKED


def drawn_sequence(length: int, seed: int = 0, masks: bool = False) -> ProteinSequence:
    """With every letter of the alphabet alike; with masks, one in 20 positions or so."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(len(LETTERS), (length,), generator=generator).tolist()
    hidden = (torch.rand(length, generator=generator) < (0.05 if masks else 0.0)).tolist()
    return ProteinSequence("".join(MASKED if mask else LETTERS[i] for i, mask in zip(numbers, hidden, strict=True)))


def sequences(max_size: int = 60) -> st.SearchStrategy[ProteinSequence]:
    """Of 1 residue and more, some masked."""
    return st.text(LETTERS_AND_MASKS, min_size=1, max_size=max_size).map(ProteinSequence)


@torch.inference_mode()
def alone(model: Any, sequence: ProteinSequence) -> tuple[Sequence[Tensor], Tensor]:
    """What `EsmForMaskedLM` says of one sequence.

    Returns:
        All hidden states [tokens, hidden size], with ``<cls>`` and ``<eos>``; logits [L, 33] of the residues.
    """
    out = model(input_ids=torch.tensor([list(sequence.tokens)]), output_hidden_states=True)
    return [state[0] for state in out.hidden_states], out.logits[0, 1:-1]


@torch.inference_mode()
def contacts_alone(model: Any, sequence: ProteinSequence) -> Tensor:
    """[L, L], by a model with eager attention."""
    tokens = torch.tensor([list(sequence.tokens)])
    contacts: Tensor = model.predict_contacts(tokens, torch.ones_like(tokens))[0]
    return contacts
