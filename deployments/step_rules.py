"""How the steps of a video are computed: which sigmas they go through, which rows they run, which are computed in
full. Pure.

The rules are numbers of a request and its schedule alone, so every replica has the same plan of all steps before the
first one, and nothing that happens on the way changes it.
"""

from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from deployments.clip import cfg_rows

Quality = Literal["exact", "fast", "draft"]
"""What a request may ask for; best first. `exact` computes each step as the model's authors do."""

QUALITIES: tuple[Quality, ...] = ("exact", "fast", "draft")

AttentionName = Literal["full", "fp8"]
"""Numbers that attention multiplies: of the model's dtype, or of 8 bits (`deployments.mochi.fp8_attention`)."""

THRESHOLD_NOISE = 0.025  # sigma where the authors' schedule turns from linear to quadratic
LINEAR_PART = 0.5  # of the steps, before it does


@dataclass(frozen=True, slots=True)
class StepRules:
    """By default each step is computed in full, on the authors' schedule. Sigmas go from 0 (noise) to 1 (video)."""

    threshold_noise: float = THRESHOLD_NOISE  # sigma where the schedule turns from linear to quadratic
    linear_part: float = LINEAR_PART  # of the steps, that are before it
    guidance_from: float = 0.0  # sigma; a step outside runs no row for the negative prompt
    guidance_until: float = 1.0  # sigma, inclusive as `guidance_from`
    reuse_from: float = 0.0  # sigma; a step outside is computed in full
    reuse_until: float = 1.0  # sigma, inclusive as `reuse_from`
    reuse_run: int = 0  # steps in a row that reuse the blocks of the full step before them; 0: none does
    attention: AttentionName = "full"

    def to_json(self) -> dict[str, Any]:
        """What differs from the default."""
        if self == DEFAULT_RULES:
            return {}
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT_RULES, name)}


DEFAULT_RULES = StepRules()


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one step of a sample runs."""

    rows: int  # 2 with the negative prompt, 1 without
    reuses: bool = False  # runs the first block alone, and adds what the others did in the last full step

    @property
    def full_rows(self) -> int:
        """Rows that go through all blocks."""
        return 0 if self.reuses else self.rows


@dataclass(frozen=True)
class StepPlan:
    """All steps of a sample. Samples of one kind share a plan, so what follows from it is computed once."""

    steps: tuple[PlannedStep, ...]

    @property
    def max_rows(self) -> int:
        """Rows of the step that has most."""
        return max(step.rows for step in self.steps)

    @cached_property
    def mean_full_rows(self) -> float:
        """Rows that go through all blocks, of a step in the mean; the first step is always full."""
        return sum(step.full_rows for step in self.steps) / len(self.steps)

    @property
    def max_rows_kept(self) -> int:
        """The most rows of which a step leaves something for the next one."""
        return max(self.rows_kept(step) for step in range(len(self.steps)))

    def rows_kept(self, step: int) -> int:
        """Rows of which `step` leaves something for the next one to reuse; the prompt's is the last to go."""
        return 0 if self.resumable(step + 1) else self.steps[step + 1].rows

    def resumable(self, done: int) -> bool:
        """Whether latents after `done` steps are all that the next step needs."""
        return done >= len(self.steps) or not self.steps[done].reuses


def linear_steps(num_steps: int, linear_part: float) -> int:
    """Steps before the schedule turns quadratic, at least one and at most all but one."""
    # A product like 0.29 * 100 lies just below the whole number that it means.
    return min(max(1, num_steps - 1), max(1, int(linear_part * num_steps + 1e-9)))


def rising_sigmas(num_steps: int, threshold_noise: float, linear_steps: int) -> list[float]:
    """Mochi's linear-quadratic schedule (genmoai/models, mochi_preview/infer.py): the sigma at which each step begins.

    Args:
        num_steps: at least 2.
        threshold_noise: sigma after the linear steps.
        linear_steps: 1 to num_steps - 1.
    """
    difference = linear_steps - threshold_noise * num_steps
    quadratic_steps = num_steps - linear_steps
    quadratic = difference / (linear_steps * quadratic_steps**2)
    slope = threshold_noise / linear_steps - 2 * difference / (quadratic_steps**2)
    constant = quadratic * (linear_steps**2)
    first = [i * threshold_noise / linear_steps for i in range(linear_steps)]
    return first + [quadratic * (i**2) + slope * i + constant for i in range(linear_steps, num_steps)]


def is_rising(num_steps: int, threshold_noise: float, linear_part: float) -> bool:
    """Whether sigma rises to the end: the parabola ends at 1 with a slope of 2 (1 - threshold) / q less the line's, for
    q steps behind the linear ones."""
    linear = linear_steps(num_steps, linear_part)
    return threshold_noise / linear <= 2 * (1 - threshold_noise) / max(1, num_steps - linear)


@lru_cache(maxsize=4096)
def step_plan(num_steps: int, guidance_scale: float, rules: StepRules = DEFAULT_RULES) -> StepPlan:
    """The plan of a sample.

    A step reuses what the last full one computed if the rules allow it there, if fewer than `reuse_run` before it did,
    and if all its rows were in that full step.
    """
    most_rows = cfg_rows(guidance_scale)
    steps: list[PlannedStep] = []
    held_rows, run = 0, 0  # rows of the last full step, steps since
    for sigma in _begins(num_steps, rules):
        rows = most_rows if rules.guidance_from <= sigma <= rules.guidance_until else 1
        allowed = rules.reuse_from <= sigma <= rules.reuse_until and run < rules.reuse_run
        reuses = allowed and rows <= held_rows
        held_rows, run = (min(rows, held_rows), run + 1) if reuses else (rows, 0)
        steps.append(PlannedStep(rows, reuses))
    return StepPlan(tuple(steps))


def _begins(num_steps: int, rules: StepRules) -> list[float]:
    """Rounded, so that a rule which names the sigma of a step means that step."""
    if num_steps < 2:
        return [0.0] * num_steps
    sigmas = rising_sigmas(num_steps, rules.threshold_noise, linear_steps(num_steps, rules.linear_part))
    return [round(sigma, 6) for sigma in sigmas]
