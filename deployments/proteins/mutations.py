"""Variants of a protein: substitutions as papers write them, ``A24G``, and ProteinGym's joined ones, ``A24G:L30V``."""

import re
from dataclasses import dataclass

from deployments.proteins.alphabet import AMINO_ACIDS, LETTERS, MASKED, ProteinSequence, SequenceError

_SUBSTITUTION = re.compile(r"([A-Za-z])([0-9]{1,9})([A-Za-z])")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One residue in the place of another."""

    wild_type: str
    position: int
    """From 1, as it is written."""

    mutant: str
    """One of AMINO_ACIDS."""

    @property
    def index(self) -> int:
        """The position, from 0."""
        return self.position - 1


Variant = tuple[Mutation, ...]
"""All mutations of one protein, by their positions."""


def read_variant(text: str, sequence: ProteinSequence) -> Variant:
    """The mutations that a text names, joined with ``:`` or ``/``, of this sequence.

    A residue may be replaced by itself: such a variant scores 0.

    Raises:
        SequenceError: `mutation_invalid`, it cannot be read, or names a position twice; `mutation_out_of_range`;
            `mutation_mismatch`, the sequence has another residue there.
    """
    mutations = [_read_mutation(one, sequence) for one in re.split("[:/]", "".join(text.split()))]
    positions = [mutation.position for mutation in mutations]
    if twice := next((one for one in positions if positions.count(one) > 1), None):
        raise SequenceError("mutation_invalid", f"{text!r} mutates position {twice} twice; name each position once")
    return tuple(sorted(mutations, key=lambda mutation: mutation.position))


def _read_mutation(text: str, sequence: ProteinSequence) -> Mutation:
    match = _SUBSTITUTION.fullmatch(text)
    if match is None:
        raise SequenceError(
            "mutation_invalid",
            f"{text!r} is no substitution; write the residue, its position from 1 and the new residue, as in A24G, and "
            "join several with ':' or '/'",
        )
    wild_type, mutant = match[1].upper().replace("J", "X"), match[3].upper()
    position = int(match[2])
    if mutant not in AMINO_ACIDS or wild_type not in LETTERS:
        raise SequenceError(
            "mutation_invalid", f"{text!r}: a residue is replaced by one of the 20 amino acids {AMINO_ACIDS}"
        )
    if not 1 <= position <= len(sequence):
        raise SequenceError(
            "mutation_out_of_range", f"{text!r}: positions go from 1 to {len(sequence)}, the length of the sequence"
        )
    found = sequence.residues[position - 1]
    if found != wild_type:
        there = "<mask>" if found == MASKED else found
        raise SequenceError(
            "mutation_mismatch",
            f"{text!r}: the residue at position {position} is {there}, not {wild_type}; count positions from 1 in the "
            "sequence that you send",
        )
    return Mutation(wild_type, position, mutant)
