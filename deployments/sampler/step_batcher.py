"""Which samples run in the next pass, so that each has its share of the device. Pure: no torch, no Ray, no clock.

Samples come and go between steps. Those of one pass have latents of the same shape, and the same LoRA or none. A pass
is built around the sample that was due first, and filled with others like it in the order in which they are due. With n
samples, m that shared a pass of c seconds are due again n c/m after they were due for it: so each has one part in n of
the device's time, and a small clip takes many steps while a large one beside it waits for its next. It is start-time
fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) on the device's clock. While no sample comes or goes, and none share,
what any two have had differs by the longest pass at most.

None waits for ever, whoever comes and goes. One that is due goes before all that come from then on. Before it go the
pass that is under way, one of each other sample, and what these need to make good how late they are, of which no more
is remembered than a step of each sample takes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import inf
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


@dataclass(frozen=True, slots=True)
class _Turn:
    """The last pass of a sample, or that it came."""

    number: int  # of the passes until then
    due: float  # the sample was due then
    took: float = 0.0
    samples: int = 1  # that shared the pass

    @property
    def share(self) -> float:
        """Of the sample, in what the pass took."""
        return self.took / self.samples


@dataclass(slots=True)
class StepBatcher(Generic[Key]):
    """The samples that are to be stepped, and whose turn it is. Time is what passes took, in any one unit."""

    max_tokens: int
    """Tokens of all rows of one pass; a single sample may have more, it then runs alone."""
    max_wait: float = inf
    """A sample is due again after so much of the device's time at most, whatever its last pass took."""

    _loads: dict[Key, Load] = field(default_factory=dict)
    _turns: dict[Key, _Turn] = field(default_factory=dict)
    _passes: int = 0
    _now: float = 0

    def __len__(self) -> int:
        return len(self._loads)

    def add(self, key: Key, load: Load) -> None:
        """Add a sample, due now.

        Raises:
            ValueError: there is one of this key.
        """
        if key in self._loads:
            raise ValueError(f"{key!r} is there already")
        self._loads[key] = load
        self._turns[key] = _Turn(self._passes, self._now)

    def update(self, key: Key, load: Load) -> None:
        """The sample's next step adds this. Raises KeyError if there is none of this key."""
        if self._loads[key] != load:
            self._loads[key] = load

    def remove(self, key: Key) -> None:
        """Remove a sample. Raises KeyError if there is none of this key."""
        del self._loads[key]
        del self._turns[key]

    def next_pass(self) -> list[Key]:
        """The samples of the next pass, empty if there are none; the same until `count_pass` is told of one."""
        chosen: list[Key] = []
        for key in sorted(self._loads, key=self._due):
            if not chosen or self._fits(key, chosen):
                chosen.append(key)
        return chosen

    def count_pass(self, keys: Sequence[Key], took: float) -> None:
        """A pass of these samples, at least one, took so long."""
        earliest = self._now - sum(turn.share for turn in self._turns.values())
        due = {key: max(earliest, min(self._now, self._due(key)[0])) for key in keys}
        self._passes += 1
        self._now += took
        self._turns |= {key: _Turn(self._passes, due[key], took, len(keys)) for key in keys}

    def _due(self, key: Key) -> tuple[float, int]:
        """When it is, and for those that are due together the number of its last pass."""
        turn = self._turns[key]
        return turn.due + min(len(self._loads) * turn.share, self.max_wait), turn.number

    def _fits(self, key: Key, chosen: list[Key]) -> bool:
        load = self._loads[key]
        first = self._loads[chosen[0]]
        if load.exact or first.exact or (load.shape, load.lora) != (first.shape, first.lora):
            return False
        return load.pass_tokens + sum(self._loads[other].pass_tokens for other in chosen) <= self.max_tokens
