"""What a protein sequence may be, and the tokens that ESM2 reads for it.

The rule, in the order in which it is applied:

- spaces and line breaks go; lower case is read as upper;
- ``-`` and ``.``, the gaps of an alignment, are refused, unless they are to be removed;
- one ``*`` at the end, a stop, goes; any other is refused;
- the 20 amino acids, X (any), B (D or N), Z (E or Q), U (selenocysteine) and O (pyrrolysine) are tokens of ESM2;
- J (I or L) is none: it is read as X, and a note says so;
- ``<mask>`` is one position whose residue the model is not told;
- anything else is refused, and so are no residues and more than MAX_RESIDUES.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

from deployments.errors import PermanentError

MAX_RESIDUES = 1022
"""ESM2 was trained on no longer ones; with the tokens before and after it is 1,024."""

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The 20, in the order of the columns of every table of substitutions."""

VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""ESM2's tokens by their ids: the same for its models of all sizes."""

CLS, EOS, MASK = (VOCABULARY.index(token) for token in ("<cls>", "<eos>", "<mask>"))
AMINO_ACID_TOKENS = tuple(VOCABULARY.index(letter) for letter in AMINO_ACIDS)

MASKED = "#"
"""Stands for ``<mask>`` in `ProteinSequence.residues`, where each position is one character."""

LETTERS = AMINO_ACIDS + "XBZUO"
_IDS = bytes.maketrans((LETTERS + MASKED).encode(), bytes([*map(VOCABULARY.index, LETTERS), MASK]))
_READ_AS = {**{letter: letter for letter in LETTERS}, "J": "J", "-": "-", ".": ".", "*": "*"}
_READ_AS |= {letter.lower(): read for letter, read in _READ_AS.items()}
_POSITION = re.compile("<mask>|.", re.IGNORECASE | re.ASCII | re.DOTALL)
_MOST_NAMED = 10
ALLOWED = f"the 20 amino acids {AMINO_ACIDS}, X, B, Z, U, O, J and <mask>"


class SequenceError(PermanentError, ValueError):
    """A sequence, or what is asked of it, is not what a model can read.

    Args:
        code: stable snake_case word, e.g. ``sequence_too_long``.
        message: what was wrong, what is allowed, what to do; for clients.
    """


@dataclass(frozen=True, slots=True)
class ProteinSequence:
    """A sequence as a model reads it."""

    residues: str
    """One letter of LETTERS a position; MASKED where it is masked."""

    notes: tuple[str, ...] = ()
    """What of the sequence was read as something else, for clients."""

    def __len__(self) -> int:
        return len(self.residues)

    @property
    def text(self) -> str:
        """As a client would write it."""
        return self.residues.replace(MASKED, "<mask>")

    @property
    def tokens(self) -> bytes:
        """Ids of ESM2's vocabulary, one byte each: ``<cls>``, the residues, ``<eos>``."""
        return bytes([CLS]) + self.residues.encode().translate(_IDS) + bytes([EOS])

    @property
    def masked(self) -> tuple[int, ...]:
        """The masked positions, from 0."""
        return tuple(i for i, residue in enumerate(self.residues) if residue == MASKED)


def read_sequence(text: str, remove_gaps: bool = False, max_residues: int | None = MAX_RESIDUES) -> ProteinSequence:
    """The sequence that a text says, by the rule of this module.

    Args:
        remove_gaps: ``-`` and ``.`` are removed.
        max_residues: None where a longer sequence is cut into windows.

    Raises:
        SequenceError: `sequence_invalid` with the place, counted from 1 without spaces, `sequence_empty`,
            `sequence_too_long`.
    """
    positions = _POSITION.findall("".join(text.split()))
    residues = "".join(MASKED if len(one) > 1 else _READ_AS.get(one, "?") for one in positions)
    notes = []
    if "?" in residues:
        _refuse_letter(residues.index("?"), positions)
    if gaps := residues.count("-") + residues.count("."):
        if not remove_gaps:
            _refuse_gap(residues)
        residues = residues.replace("-", "").replace(".", "")
        notes.append(
            f"{gaps} gaps were removed: positions are counted without them" if gaps > 1 else "1 gap was removed"
        )
    residues = residues.removesuffix("*")
    if "*" in residues:
        _refuse(residues.index("*"), "is *, a stop, which is allowed at the end alone", "cut the sequence there")
    if not residues:
        raise SequenceError("sequence_empty", f"the sequence has no residues; it is written with {ALLOWED}")
    if max_residues is not None and len(residues) > max_residues:
        raise SequenceError(
            "sequence_too_long",
            f"the sequence has {len(residues)} residues and the model reads {max_residues} at the most; cut it into "
            "domains, or ask for windows where the request has them",
        )
    if "J" in residues:
        notes.append(f"J (I or L) is no token of the model and was read as X at {_places(residues, 'J')}")
    return ProteinSequence(residues.replace("J", "X"), tuple(notes))


def _refuse_letter(index: int, positions: list[str]) -> NoReturn:
    letter = positions[index]
    hint = "send the sequence without its FASTA header" if letter == ">" else f"allowed are {ALLOWED}"
    _refuse(index, f"is {letter!r}, which stands for no amino acid", hint)


def _refuse_gap(residues: str) -> NoReturn:
    index = min(residues.index(gap) for gap in "-." if gap in residues)
    _refuse(index, f"is {residues[index]!r}, a gap of an alignment", "remove the gaps, or ask for it with remove_gaps")


def _refuse(index: int, what: str, hint: str) -> NoReturn:
    raise SequenceError("sequence_invalid", f"position {index + 1} {what}; {hint}")


def _places(residues: str, letter: str) -> str:
    """Where a letter is, for people: "positions 3, 7 and 12 others"."""
    places = [i + 1 for i, residue in enumerate(residues) if residue == letter]
    named = ", ".join(map(str, places[:_MOST_NAMED]))
    more = len(places) - _MOST_NAMED
    return f"position{'s' * (len(places) > 1)} {named}" + (f" and {more} others" if more > 0 else "")
