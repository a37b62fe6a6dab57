"""Which samples run in the next forward pass. Pure: no torch, no Ray, no clock.

Samples come and go between steps. Those of one pass have latents of the same shape, and the same LoRA or none. The pass
is built around the sample that has waited longest, and filled with others like it in the order they have waited; so
with several kinds at once the batches take turns, and no sample waits for more passes than there are others beside it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Load:
    """What the next step of one sample adds to a pass."""

    shape: Hashable  # of its latents
    tokens: int  # of one row
    cfg_rows: int  # 2 where it is guided, 1 where not
    exact: bool = False  # it shares its pass with no other sample
    lora: Hashable = None  # that the model's weights are changed with; all rows of a pass go through the same weights

    @property
    def pass_tokens(self) -> int:
        """Tokens of all its rows."""
        return self.tokens * self.cfg_rows


@dataclass(slots=True)
class StepBatcher(Generic[Key]):
    """The samples that are to be stepped, and whose turn it is."""

    max_tokens: int
    """Tokens of all rows of one pass; a single sample may have more, it then runs alone."""

    _loads: dict[Key, Load] = field(default_factory=dict)
    _last_turn: dict[Key, int] = field(default_factory=dict)
    _turn: int = 0

    def __len__(self) -> int:
        return len(self._loads)

    def add(self, key: Key, load: Load) -> None:
        """Add a sample, behind all that wait since an earlier turn.

        Raises:
            ValueError: there is one of this key.
        """
        if key in self._loads:
            raise ValueError(f"{key!r} is there already")
        self._loads[key] = load
        self._last_turn[key] = self._turn

    def update(self, key: Key, load: Load) -> None:
        """The sample's next step adds this. Raises KeyError if there is none of this key."""
        if self._loads[key] != load:
            self._loads[key] = load

    def remove(self, key: Key) -> None:
        """Remove a sample. Raises KeyError if there is none of this key."""
        del self._loads[key]
        del self._last_turn[key]

    def next_pass(self) -> list[Key]:
        """The samples of the next pass, empty if there are none; this is then their last turn."""
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
        load = self._loads[key]
        first = self._loads[chosen[0]]
        if load.exact or first.exact or (load.shape, load.lora) != (first.shape, first.lora):
            return False
        return load.pass_tokens + sum(self._loads[other].pass_tokens for other in chosen) <= self.max_tokens
