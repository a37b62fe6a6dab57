"""Which samples run in the next forward pass. Pure: no torch, no Ray, no clock.

Samples join and leave between steps. Those of one pass have latents of the same shape. The pass is built around the
sample that has waited longest, and filled with others of its shape in the order they have waited; so with several
shapes at once the batches take turns, and no sample waits for more passes than there are others beside it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Load:
    """What one sample adds to a pass.

    shape: of its latents. tokens: of one row. rows: 2 with guidance, 1 without. exact: it shares its pass with none.
    """

    shape: Hashable
    tokens: int
    rows: int
    exact: bool = False


@dataclass(slots=True)
class StepBatcher(Generic[Key]):
    """The samples in residence and whose turn it is.

    Args:
        max_tokens: tokens of all rows of one pass; a single sample may be larger, it then runs alone.
    """

    max_tokens: int
    _loads: dict[Key, Load] = field(default_factory=dict)
    _last_turn: dict[Key, int] = field(default_factory=dict)
    _turn: int = 0

    def __len__(self) -> int:
        return len(self._loads)

    def join(self, key: Key, load: Load) -> None:
        """Take a sample in; it has waited longest of all only if nobody else waits.

        Raises:
            ValueError: the key is in residence already.
        """
        if key in self._loads:
            raise ValueError(f"{key!r} is in residence already")
        self._loads[key] = load
        self._last_turn[key] = self._turn

    def leave(self, key: Key) -> None:
        """Let a sample go. Raises KeyError if it is not in residence."""
        del self._loads[key]
        del self._last_turn[key]

    def next_pass(self) -> list[Key]:
        """The samples of the next pass, empty if nobody is in residence; each of them has had its turn then."""
        waiting = sorted(self._loads, key=self._last_turn.__getitem__)
        chosen: list[Key] = []
        for key in waiting:
            if not chosen or self._fits(key, chosen):
                chosen.append(key)
        self._turn += 1
        for key in chosen:
            self._last_turn[key] = self._turn
        return chosen

    def _fits(self, key: Key, chosen: list[Key]) -> bool:
        load, first = self._loads[key], self._loads[chosen[0]]
        if load.exact or first.exact or load.shape != first.shape:
            return False
        taken = sum(self._loads[other].tokens * self._loads[other].rows for other in chosen)
        return taken + load.tokens * load.rows <= self.max_tokens
