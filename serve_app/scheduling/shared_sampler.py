"""How the samples of one replica get on together, as a forecast needs it. Pure.

A sampler gives each of its n samples one part in n of its time, and those of one kind share their passes
(`deployments/sampler/step_batcher.py`). So m of a kind, whose pass takes c, have a pass every c n/m, and in between a
small sample takes many steps while a large one beside it takes one. Here time is not in passes but flows: a sample is
ahead of or behind what is told by a pass of each of the others at most.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

from deployments.messages import VideoSpec
from serve_app.scheduling.estimates import StepTime


@dataclass(slots=True)
class SharingSample:
    """A sample in a replica."""

    steps_left: float
    step: StepTime
    batch: Hashable  # see `batch_of`


def batch_of(job_id: str, spec: VideoSpec) -> Hashable:
    """Samples of one replica with an equal one share their passes."""
    return job_id if spec.alone else (spec.clip, spec.lora_choice)


@dataclass(slots=True)
class SharedSampler:
    """A replica and the samples that it steps. Times are seconds from the forecast's begin."""

    slots: int
    held: int = 0  # slots that are held: by the samples, and by those whose latents are being stored
    _samples: dict[str, SharingSample] = field(default_factory=dict)  # by job id
    _at: float = 0.0  # what is in _samples was so then
    _step_s: dict[str, float] = field(default_factory=dict)  # from one step of a sample to its next, by job id

    @property
    def open_slots(self) -> int:
        return self.slots - self.held

    def add(self, job_id: str, sample: SharingSample, at: float) -> None:
        """Take in a sample; it holds a slot until `held` is lowered."""
        self._go_on(at)
        self._samples[job_id] = sample
        self.held += 1
        self._share()

    def remove(self, job_id: str, at: float) -> float:
        """Let a sample go; its slot stays held. Returns the steps that it has left."""
        self._go_on(at)
        sample = self._samples.pop(job_id)
        self._share()
        return sample.steps_left

    def steps_left(self, at: float) -> dict[str, float]:
        """The steps that each sample has left, by job id."""
        self._go_on(at)
        return {job_id: sample.steps_left for job_id, sample in self._samples.items()}

    def next_end(self) -> tuple[float, str] | None:
        """When the first sample has done its steps, and whose it is; None without samples."""
        if not self._samples:
            return None
        left_s = {job_id: sample.steps_left * self._step_s[job_id] for job_id, sample in self._samples.items()}
        job_id = min(left_s, key=left_s.__getitem__)
        return self._at + left_s[job_id], job_id

    def _go_on(self, at: float) -> None:
        for job_id, sample in self._samples.items():
            step_s = self._step_s[job_id]
            sample.steps_left = max(0.0, sample.steps_left - (at - self._at) / step_s) if step_s > 0 else 0.0
        self._at = at

    def _share(self) -> None:
        batches: defaultdict[Hashable, list[str]] = defaultdict(list)
        for job_id, sample in self._samples.items():
            batches[sample.batch].append(job_id)
        self._step_s = {}
        for job_ids in batches.values():
            times = [self._samples[job_id].step for job_id in job_ids]
            pass_s = sum(step.pass_s for step in times) / len(times) + sum(step.sample_s for step in times)
            self._step_s |= dict.fromkeys(job_ids, pass_s * len(self._samples) / len(times))
