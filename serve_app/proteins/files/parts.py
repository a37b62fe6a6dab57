"""How a file of sequences is cut into parts, and what a part is in storage. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from deployments.embedder.settings import ProteinSettings
from serve_app.proteins.fasta import FastaEntry
from serve_app.proteins.requests import AskedSequence, Options, ProteinRequest
from serve_app.proteins.work import count_numbers, count_tokens


@dataclass(frozen=True, slots=True)
class FilePart:
    """Sequences of a file that follow each other."""

    first: int  # the index of the first one in the file, from 0
    entries: tuple[FastaEntry, ...]
    tokens: int  # of all passes, about

    def to_json(self) -> bytes:
        """As it is stored."""
        return orjson.dumps(
            {"first": self.first, "tokens": self.tokens, "entries": [[one.id, one.sequence] for one in self.entries]}
        )

    @classmethod
    def from_json(cls, data: bytes) -> "FilePart":
        """What `to_json` made. Raises ValueError: it is damaged."""
        values = orjson.loads(data)
        return cls(
            first=values["first"],
            entries=tuple(FastaEntry(name, sequence) for name, sequence in values["entries"]),
            tokens=values["tokens"],
        )

    def request(self, options: Options) -> ProteinRequest:
        """What is to be computed."""
        return ProteinRequest(tuple(AskedSequence(one.sequence, one.id or None) for one in self.entries), options)


@dataclass(slots=True)
class PartCutter:
    """Cuts while the file is read: a part ends before the sequence that it has no room for.

    Args:
        options: what is wanted of each sequence.
        hidden_size: of the model.
    """

    settings: ProteinSettings
    options: Options
    hidden_size: int
    sequences: int = 0  # so far, of the whole file
    tokens: int = 0  # likewise, of all passes, about
    parts: int = 0  # that were cut off
    _entries: list[FastaEntry] = field(default_factory=list)
    _part_tokens: int = 0
    _part_numbers: int = 0

    def add(self, entry: FastaEntry) -> FilePart | None:
        """Take a sequence in; the part before it, if it begins a new one."""
        length = len(entry.sequence)
        tokens = count_tokens(length, self.options)
        numbers = count_numbers(length, self.options, self.hidden_size)
        has_room = (
            len(self._entries) < self.settings.part_sequences
            and self._part_tokens + tokens <= self.settings.part_tokens
            and self._part_numbers + numbers <= self.settings.max_answer_numbers
        )
        part = None if has_room or not self._entries else self.finish()
        self._entries.append(entry)
        self.sequences += 1
        self.tokens += tokens
        self._part_tokens += tokens
        self._part_numbers += numbers
        return part

    def finish(self) -> FilePart | None:
        """The last part; None if nothing is left."""
        if not self._entries:
            return None
        entries: Sequence[FastaEntry] = self._entries
        part = FilePart(self.sequences - len(entries), tuple(entries), self._part_tokens)
        self._entries, self._part_tokens, self._part_numbers = [], 0, 0
        self.parts += 1
        return part
