"""What a stage of a job costs, in GPU-seconds: a nominal rate first, then what was measured. Pure.

A job's work is counted in units: encoding is one, decoding has one per token, sampling one per
denoising step, row and token (guidance makes two rows). The rate is seconds per unit. Attention
grows faster than the tokens, so rates are kept for each size; a size that was never measured takes
the rate of the stage over all sizes.

When each waiting job will start and finish: list scheduling over the slots of its stage. Pure.

List scheduling (R. L. Graham, "Bounds for certain multiprocessing anomalies", 1966): in the order
of the queue each job takes the slot that is free first. That is what the registry does, so the
forecast is exact if the times are, and if nothing else comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import inf

from deployments.clip import cfg_rows
from deployments.messages import Stage, VideoSpec

# Each observation makes the older ones weigh so much less: about the last ten make up the rate.
_FADING = 0.9

# Computed for one H100 at 848x480, 163 frames (44,520 tokens), uncompiled: 64 steps with guidance
# 587 s, decoding 8 s.
_NOMINAL = {Stage.ENCODING: 0.1, Stage.SAMPLING: 1e-4, Stage.DECODING: 2e-4}

_Size = tuple[Stage, int, int]


@dataclass(slots=True)
class _Rate:
    """Seconds per unit of work: a quotient of two fading sums, so that a long span counts more."""

    seconds: float = 0.0
    units: float = 0.0

    def observe(self, seconds: float, units: float) -> None:
        self.seconds = self.seconds * _FADING + seconds
        self.units = self.units * _FADING + units

    @property
    def value(self) -> float:
        return self.seconds / self.units


class CostModel:
    """Estimates for all stages: a rate for each measured size, and one for each stage over all sizes."""

    def __init__(self) -> None:
        self._rate_of_size: dict[_Size, _Rate] = {}
        self._rate_of_stage: dict[Stage, _Rate] = {}

    def observe(self, stage: Stage, spec: VideoSpec, steps: int, device_s: float) -> None:
        """Learn from a span of work.

        Args:
            stage: what was run; encoding and decoding are observed as a whole.
            spec: of the job.
            steps: denoising steps done in the span; 0 in other stages.
            device_s: seconds of the device that the job took; a span without steps or seconds
                teaches nothing.
        """
        units = _units(stage, spec, steps)
        if units <= 0 or not 0 < device_s < inf:
            return
        self._rate_of_size.setdefault(_size(stage, spec), _Rate()).observe(device_s, units)
        self._rate_of_stage.setdefault(stage, _Rate()).observe(device_s, units)

    def estimate(self, stage: Stage, spec: VideoSpec, steps_left: int) -> float:
        """GPU-seconds that the stage still takes, > 0.

        Args:
            stage: the one the job waits for or runs.
            spec: of the job.
            steps_left: denoising steps still to do; counted as at least one, and only while
                sampling.
        """
        measured = self._rate_of_size.get(_size(stage, spec)) or self._rate_of_stage.get(stage)
        rate = _NOMINAL[stage] if measured is None else measured.value
        return rate * _units(stage, spec, max(1, steps_left))

    def is_measured(self, stage: Stage) -> bool:
        """Whether estimates of the stage rest on a measurement."""
        return stage in self._rate_of_stage


def _units(stage: Stage, spec: VideoSpec, steps: int) -> int:
    tokens = spec.clip.tokens
    units = {
        Stage.ENCODING: 1,
        Stage.SAMPLING: steps * cfg_rows(spec.guidance_scale) * tokens,
        Stage.DECODING: tokens,
    }
    return units[stage]


def _size(stage: Stage, spec: VideoSpec) -> _Size:
    """What the rate depends on: nothing, the tokens (decoding), or tokens and rows (sampling)."""
    tokens = 0 if stage is Stage.ENCODING else spec.clip.tokens
    return (stage, tokens, cfg_rows(spec.guidance_scale) if stage is Stage.SAMPLING else 1)


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """The work of a waiting job, in seconds of wall time."""

    job_id: str
    wall_s: float  # it will hold a slot of its stage for so long
    tail_s: float  # the later stages take so long


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a job is likely to start and to end, in seconds from now."""

    starts_in_s: float  # it gets a slot of its stage
    finishes_in_s: float  # the whole job is done


def forecast(waiting: Sequence[QueuedWork], running: Sequence[float], slots: int) -> dict[str, Forecast]:
    """The forecast of each waiting job, by id.

    Args:
        waiting: in the order in which they will be served.
        running: seconds left of each held slot; one that is overdue (below 0) is taken to end now.
        slots: open and held ones together. Without any nothing can be forecast, and the result is
            empty.
    """
    if slots <= 0:
        return {}
    # Where more slots are held than there are (a replica leaves), the first that end are lost.
    held = sorted(max(0.0, left) for left in running)[-slots:]
    free_in_s = [0.0] * (slots - len(held)) + held  # a heap: seconds until each slot is free
    heapify(free_in_s)
    forecasts = {}
    for job in waiting:
        start = free_in_s[0]
        end = start + job.wall_s
        heapreplace(free_in_s, end)
        forecasts[job.job_id] = Forecast(start, end + job.tail_s)
    return forecasts
