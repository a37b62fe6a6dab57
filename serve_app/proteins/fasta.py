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
    reader = FastaReader()
    for line in text:
        if (entry := reader.take(line)) is not None:
            yield entry
    if (entry := reader.finish()) is not None:
        yield entry


class FastaReader:
    """Takes the lines of a file one after the other.

    Args:
        max_letters: of a sequence; None: any number.
    """

    def __init__(self, max_letters: int | None = None) -> None:
        self._max_letters = max_letters
        self._letters = 0  # of the sequence so far
        self._name: str | None = None
        self._lines: list[str] = []
        self._number = 0  # of the line
        self._first = 0  # the line with the first residues

    def take(self, line: str) -> FastaEntry | None:
        """The entry that this line ends, if it begins another one.

        Raises:
            InvalidRequestError: `fasta_invalid`: there was text before the first header, or a sequence is too long.
        """
        self._number += 1
        line = line.strip()
        if not line or line.startswith(";"):
            return None
        if not line.startswith(">"):
            self._first = self._first or self._number
            self._lines.append(line)
            self._letters += len(line)
            if self._max_letters is not None and self._letters > self._max_letters:
                raise InvalidRequestError(
                    f"Invalid FASTA: the sequence {quote(self._name or '')} has more than {self._max_letters} letters; "
                    "cut it into domains.",
                    "fasta",
                    "fasta_invalid",
                )
            return None
        if self._name is None and self._lines:
            raise InvalidRequestError(
                f"Invalid FASTA: line {self._first} is {quote(self._lines[0])}, before the first header; begin with "
                "'>name'.",
                "fasta",
                "fasta_invalid",
            )
        ended = self.finish()
        self._name = next(iter(line[1:].split()), "")
        return ended

    def finish(self) -> FastaEntry | None:
        """The last entry, if there is one."""
        if self._name is None and not self._lines:
            return None
        entry = FastaEntry(self._name or "", "".join(self._lines))
        self._name, self._lines, self._letters = None, [], 0
        return entry
