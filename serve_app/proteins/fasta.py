"""FASTA: sequences with their names, as they stand in the file. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serve_app.errors import InvalidRequestError, quote


@dataclass(frozen=True, slots=True)
class FastaEntry:
    """One sequence of a file."""

    id: str
    """The header up to its first space, without ``>``. Several entries may have the same one."""

    sequence: str
    """All lines below the header, joined; what may stand there is checked with the sequence."""


def read_fasta(text: str) -> list[FastaEntry]:
    """The entries of a file in its order. Empty lines and lines that begin with ``;`` are passed over.

    A text without any header is one sequence without a name.

    Raises:
        InvalidRequestError: `fasta_invalid`: there is text before the first header, or no sequence at all.
    """
    entries = list(fasta_entries(text.splitlines()))
    if not entries:
        raise InvalidRequestError(
            "Invalid FASTA: it holds no sequence; write a line '>name' and the residues below it.",
            "fasta",
            "fasta_invalid",
        )
    return entries


def fasta_entries(text: Iterable[str]) -> Iterator[FastaEntry]:
    """The entries of a file that is read line by line. Raises InvalidRequestError: text before the first header."""
    name: str | None = None
    lines: list[str] = []
    first = 0  # the line with the first residues
    for number, line in enumerate(text, 1):
        line = line.strip()
        if not line or line.startswith(";"):
            continue
        if not line.startswith(">"):
            first = first or number
            lines.append(line)
            continue
        if name is not None:
            yield FastaEntry(name, "".join(lines))
        elif lines:
            raise InvalidRequestError(
                f"Invalid FASTA: line {first} is {quote(lines[0])}, before the first header; begin with '>name'.",
                "fasta",
                "fasta_invalid",
            )
        name, lines = next(iter(line[1:].split()), ""), []
    if name is not None or lines:
        yield FastaEntry(name or "", "".join(lines))
