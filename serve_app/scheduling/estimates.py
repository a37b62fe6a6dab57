"""What a stage of a job costs, in GPU-seconds, and how long it holds a slot: a nominal rate, then measured. Pure.

Encoding takes the same for every job, decoding and embedding go with the tokens. A denoising step has a part
for each pass, which the samples of a pass share, one for each token of each row, and one that grows
with the square of the tokens (attention). `time_fit` fits these to all that was measured, so a size
that was never measured is scaled from others. A stage of which nothing was measured takes the
nominal rate, scaled as the measured stages differ from theirs.
"""

from dataclasses import dataclass
from math import exp, inf, log
from typing import NamedTuple

from deployments.messages import STAGES, STEPPED, ProteinSpec, Spec, Stage, VideoSpec
from serve_app.jobs import STAGES_FROM, Job
from serve_app.scheduling.time_fit import Terms, TimeFit

# Each observation makes the older ones weigh so much less: about the last ten make up the mean.
_FADING = 0.9

# Computed for one H100 at 848x480, 163 frames (44,520 tokens), uncompiled: 64 steps with guidance
# 587 s, decoding 8 s. Of proteins: ESM2 with 650M weights, 100,000 tokens a second.
_NOMINAL = {Stage.ENCODING: 0.1, Stage.SAMPLING: 1e-4, Stage.DECODING: 2e-4, Stage.EMBEDDING: 1e-5}

_Size = tuple[object, ...]


class StepTime(NamedTuple):
    """What one denoising step of a sample takes, in seconds of the device."""

    pass_s: float  # of the pass, whatever is in it: the samples of the pass share it
    sample_s: float  # of the sample itself


@dataclass(slots=True)
class _Sharing:
    """Passes for a step: 1 alone, less where samples share passes; a quotient of two fading sums."""

    passes: float = 0.0
    steps: float = 0.0

    def observe(self, passes: float, steps: int) -> None:
        self.passes = self.passes * _FADING + passes
        self.steps = self.steps * _FADING + steps

    @property
    def mean(self) -> float:
        return self.passes / self.steps if self.steps else 1.0


class CostModel:
    """Estimates for all stages."""

    def __init__(self) -> None:
        self._device = {stage: TimeFit(_PREFERRED[stage]) for stage in Stage}
        # How long a job holds a slot; of sampling only what is not denoising.
        self._held = {stage: TimeFit(0) for stage in Stage}
        self._nominal_ratios: dict[Stage, float] = {}  # log of measured over nominal seconds, fading
        self._sharing = _Sharing()

    def observe(self, stage: Stage, spec: Spec, steps: int, device_s: float, passes: float | None = None) -> None:
        """Learn from a span of work.

        Args:
            stage: what was run; encoding and decoding are observed as a whole.
            spec: of the job.
            steps: done in the span, of a stage that goes by steps; 0 in other stages.
            device_s: seconds of the device that the job took; a span without steps or seconds
                teaches nothing.
            passes: that were run for these steps, each shared among the samples in it; None if that
                is not known: then each step is taken to be a pass.
        """
        if (stage in STEPPED and steps <= 0) or not 0 < device_s < inf:
            return
        counted = passes if passes else float(steps)
        self._device[stage].observe(_size(stage, spec), _terms(stage, spec, steps, counted), device_s)
        ratio = log(device_s / (_NOMINAL[stage] * _units(stage, spec, steps)))
        self._nominal_ratios[stage] = _FADING * self._nominal_ratios.get(stage, ratio) + (1 - _FADING) * ratio
        if stage is Stage.SAMPLING:
            self._sharing.observe(counted, steps)

    def observe_held(self, stage: Stage, spec: Spec, held_s: float, steps: int = 0) -> None:
        """Learn how long a job held its slot; of sampling: beside the denoising itself.

        Args:
            steps: that were done in that time, of proteins.
        """
        terms = _held_terms(stage, spec, steps)
        if 0 < held_s < inf and any(terms):
            self._held[stage].observe(_size(stage, spec), terms, held_s)

    def estimate(self, stage: Stage, spec: Spec, steps_left: int) -> float:
        """GPU-seconds that the stage still takes, > 0.

        Args:
            stage: the one the job waits for or runs.
            spec: of the job.
            steps_left: still to do; counted as at least one, and only of a stage that goes by
                steps.
        """
        steps = max(1, steps_left)
        if not self._device[stage].is_measured:
            return self._nominal_s(stage, spec, steps)
        sharing = 1.0 if isinstance(spec, ProteinSpec) or spec.alone else self._sharing.mean
        return self._device[stage].seconds(_size(stage, spec), _terms(stage, spec, steps, steps * sharing))

    def step_time(self, spec: VideoSpec) -> StepTime:
        """The parts of a denoising step."""
        fit = self._device[Stage.SAMPLING]
        if not fit.is_measured:
            return StepTime(0.0, self._nominal_s(Stage.SAMPLING, spec, 1))
        pass_s, *rest = fit.coefficients(_size(Stage.SAMPLING, spec))
        _, *amounts = _terms(Stage.SAMPLING, spec, 1, 1.0)
        return StepTime(pass_s, sum(a * b for a, b in zip(rest, amounts, strict=True)))

    def held_s(self, stage: Stage, spec: Spec, steps_left: int = 0) -> float:
        """How long a job holds its slot, in seconds of wall time; of sampling: beside the denoising itself.

        Args:
            steps_left: still to do, of proteins.
        """
        if self._held[stage].is_measured:
            return self._held[stage].seconds(_size(stage, spec), _held_terms(stage, spec, max(1, steps_left)))
        return 0.0 if stage is Stage.SAMPLING else self.estimate(stage, spec, steps_left)

    def is_measured(self, stage: Stage) -> bool:
        """Whether estimates of the stage rest on a measurement."""
        return self._device[stage].is_measured

    def _nominal_s(self, stage: Stage, spec: Spec, steps: int) -> float:
        """The nominal time, times the geometric mean of measured over nominal, of its kind of job."""
        ratios = [self._nominal_ratios[one] for one in STAGES[spec.kind] if one in self._nominal_ratios]
        ratio = exp(sum(ratios) / len(ratios)) if ratios else 1.0
        return ratio * _NOMINAL[stage] * _units(stage, spec, steps)


class RemainingCost:
    """GPU-seconds that jobs still need until they end, as things are now. Jobs of one kind are estimated once."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._known: dict[object, float] = {}

    def of(self, job: Job) -> float:
        """Of the stage that it waits for or is in, and of those after it."""
        spec = job.spec
        left = spec.steps - job.step
        kind: tuple[object, ...] = (
            (job.stage, left, spec.parts, spec.tokens)
            if isinstance(spec, ProteinSpec)
            else (job.stage, spec.clip, left, spec.guidance_scale, spec.quality, spec.exact)
        )
        seconds = self._known.get(kind)
        if seconds is None:
            seconds = sum(self._costs.estimate(stage, spec, left) for stage in STAGES_FROM[job.stage])
            self._known[kind] = seconds
        return seconds


_PREFERRED = {Stage.ENCODING: 0, Stage.SAMPLING: 1, Stage.DECODING: 1, Stage.EMBEDDING: 0}
"""Of the terms below: that time goes with the tokens is what is assumed while only one size was measured."""


def _terms(stage: Stage, spec: Spec, steps: int, passes: float) -> Terms:
    if isinstance(spec, ProteinSpec):
        return (_tokens_of(spec, steps),)
    tokens = float(spec.clip.tokens)
    row_steps = steps * spec.plan.mean_full_rows
    terms: dict[Stage, Terms] = {
        Stage.ENCODING: (1.0,),
        Stage.SAMPLING: (passes, row_steps * tokens, row_steps * tokens**2),
        Stage.DECODING: (1.0, tokens),
    }
    return terms[stage]


def _tokens_of(spec: ProteinSpec, steps: int) -> float:
    """Of so many of its parts, which are about equal."""
    return spec.tokens * steps / spec.parts


def _held_terms(stage: Stage, spec: Spec, steps: int) -> Terms:
    if isinstance(spec, ProteinSpec):
        return (_tokens_of(spec, steps),)
    return (1.0,) if stage is Stage.ENCODING else (1.0, float(spec.clip.tokens))


def _units(stage: Stage, spec: Spec, steps: int) -> float:
    """What the nominal rate is for: a job, a token of a row in a step, or a token."""
    if isinstance(spec, ProteinSpec):
        return _tokens_of(spec, steps)
    tokens = spec.clip.tokens
    units: dict[Stage, float] = {
        Stage.ENCODING: 1,
        Stage.SAMPLING: steps * spec.plan.mean_full_rows * tokens,
        Stage.DECODING: tokens,
    }
    return units[stage]


def _size(stage: Stage, spec: Spec) -> _Size:
    """What the time depends on: nothing, the tokens (decoding), or tokens and how the steps are computed (sampling).

    With a LoRA a step has more to compute and is not compiled.
    """
    if stage is Stage.ENCODING or isinstance(spec, ProteinSpec):
        return ()
    if stage is Stage.DECODING:
        return (spec.clip.tokens,)
    return spec.clip.tokens, spec.plan.mean_full_rows, spec.lora_choice is not None
