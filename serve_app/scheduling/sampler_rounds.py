"""How the samples of one replica get on together, as a forecast needs it. Pure.

A sampler steps its samples in turns, each once a round; those of one shape share the passes of the
round (`deployments/sampler/step_batcher.py`). So all samples go on at the same rate of steps, and a
round takes the sum of what a step of each takes.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from serve_app.scheduling.estimates import StepTime


@dataclass(slots=True)
class RoundSample:
    """A sample in a replica."""

    steps_left: float
    step: StepTime
    batch: Hashable  # samples of one replica with an equal one share their passes


@dataclass(slots=True)
class SamplerRounds:
    """A replica and the samples that it steps. Times are seconds from the forecast's begin."""

    slots: int
    held: int = 0  # slots that are held: by the samples, and by those whose latents are being stored
    _samples: dict[str, RoundSample] = field(default_factory=dict)  # by job id
    _at: float = 0.0  # what is in _samples was so then
    _round_s: float = 0.0

    @property
    def open_slots(self) -> int:
        return self.slots - self.held

    def add(self, job_id: str, sample: RoundSample, at: float) -> None:
        """Take in a sample; it holds a slot until `held` is lowered."""
        self._go_on(at)
        self._samples[job_id] = sample
        self.held += 1
        self._count_round()

    def remove(self, job_id: str, at: float) -> float:
        """Let a sample go; its slot stays held. Returns the steps that it has left."""
        self._go_on(at)
        sample = self._samples.pop(job_id)
        self._count_round()
        return sample.steps_left

    def steps_left(self, at: float) -> dict[str, float]:
        """The steps that each sample has left, by job id."""
        self._go_on(at)
        return {job_id: sample.steps_left for job_id, sample in self._samples.items()}

    def next_end(self) -> tuple[float, str] | None:
        """When the first sample has done its steps, and whose it is; None without samples."""
        if not self._samples:
            return None
        job_id, sample = min(self._samples.items(), key=lambda item: item[1].steps_left)
        return self._at + max(0.0, sample.steps_left) * self._round_s, job_id

    def _go_on(self, at: float) -> None:
        if self._round_s > 0:
            steps = (at - self._at) / self._round_s
            for sample in self._samples.values():
                sample.steps_left = max(0.0, sample.steps_left - steps)
        self._at = at

    def _count_round(self) -> None:
        sharing = Counter(sample.batch for sample in self._samples.values())
        self._round_s = sum(
            sample.step.pass_s / sharing[sample.batch] + sample.step.sample_s for sample in self._samples.values()
        )
