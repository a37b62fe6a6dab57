"""Variants as they are written, and what is said of those that do not fit the sequence."""

import pytest

from deployments.proteins.alphabet import ProteinSequence, SequenceError
from deployments.proteins.mutations import Mutation, read_variant

SEQUENCE = ProteinSequence("MAX#L")


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("M1A", (Mutation("M", 1, "A"),)),
        (" a2g ", (Mutation("A", 2, "G"),)),
        ("L5V:A2G", (Mutation("A", 2, "G"), Mutation("L", 5, "V"))),
        ("A2G/L5V", (Mutation("A", 2, "G"), Mutation("L", 5, "V"))),
        ("A2A", (Mutation("A", 2, "A"),)),
        ("J3I", (Mutation("X", 3, "I"),)),
    ],
)
def test_what_is_read(text: str, variant: tuple[Mutation, ...]) -> None:
    assert read_variant(text, SEQUENCE) == variant


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "mutation_invalid", "is no substitution"),
        ("A2", "mutation_invalid", "is no substitution"),
        ("A2del", "mutation_invalid", "is no substitution"),
        ("A2G:", "mutation_invalid", "is no substitution"),
        ("A2X", "mutation_invalid", "one of the 20 amino acids"),
        ("A2*", "mutation_invalid", "is no substitution"),
        ("A2G:A2V", "mutation_invalid", "position 2 twice"),
        ("A0G", "mutation_out_of_range", "from 1 to 5"),
        ("A6G", "mutation_out_of_range", "from 1 to 5"),
        ("A1G", "mutation_mismatch", "the residue at position 1 is M, not A"),
        ("A4G", "mutation_mismatch", "the residue at position 4 is <mask>, not A"),
    ],
)
def test_what_is_refused(text: str, code: str, says: str) -> None:
    with pytest.raises(SequenceError) as caught:
        read_variant(text, SEQUENCE)
    assert caught.value.code == code
    assert says in str(caught.value)
