"""Plans of steps: what rules say of each step of a video."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.step_rules import (
    DEFAULT_RULES,
    PlannedStep,
    StepPlan,
    StepRules,
    is_rising,
    linear_steps,
    rising_sigmas,
    step_plan,
)

sigma = st.floats(0, 1)
ranges = st.tuples(sigma, sigma).map(sorted)
rules = st.builds(
    lambda threshold, part, guidance, reuse, run: StepRules(
        threshold, part, guidance[0], guidance[1], reuse[0], reuse[1], run
    ),
    st.floats(0.001, 0.5),
    st.floats(0.01, 0.99),
    ranges,
    ranges,
    st.integers(0, 4),
)
scales = st.sampled_from((1.0, 1.5, 4.5))


def written(plan: StepPlan) -> str:
    """A letter for each step (f: full, r: reuses) and its rows."""
    return " ".join(f"{'r' if step.reuses else 'f'}{step.rows}" for step in plan.steps)


@given(st.integers(2, 200), scales)
def test_without_rules_each_step_is_computed_in_full(num_steps: int, scale: float) -> None:
    plan = step_plan(num_steps, scale)
    assert plan.steps == (PlannedStep(2 if scale > 1 else 1),) * num_steps
    assert plan.mean_full_rows == plan.max_rows and plan.max_rows_kept == 0
    assert all(plan.resumable(step) for step in range(num_steps + 1))


@given(st.integers(1, 200), scales, rules)
def test_what_is_reused_was_computed_in_the_last_full_step(num_steps: int, scale: float, rules: StepRules) -> None:
    plan = step_plan(num_steps, scale, rules)
    assert len(plan.steps) == num_steps and not plan.steps[0].reuses
    full, run = plan.steps[0], 0
    for number, step in enumerate(plan.steps):
        assert plan.resumable(number) is not step.reuses
        if step.reuses:
            run += 1
            assert step.rows <= full.rows and run <= rules.reuse_run
            assert plan.rows_kept(number - 1) == step.rows
        else:
            full, run = step, 0
        # What one step kept is not to be had again once a step has used less of it.
        full = PlannedStep(min(full.rows, step.rows))
    assert plan.rows_kept(num_steps - 1) == 0 and plan.resumable(num_steps)
    assert 0 < plan.mean_full_rows <= plan.max_rows


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (StepRules(guidance_until=0.5), "f2 f2 f2 f2 f2 f2 f2 f1"),
        (StepRules(guidance_from=0.01), "f1 f1 f2 f2 f2 f2 f2 f2"),
        (StepRules(reuse_run=1), "f2 r2 f2 r2 f2 r2 f2 r2"),
        (StepRules(reuse_run=3, reuse_until=0.02), "f2 r2 r2 r2 f2 f2 f2 f2"),
        (StepRules(reuse_run=1, reuse_from=0.025), "f2 f2 f2 f2 r2 f2 r2 f2"),
        # A guided step needs the negative prompt's row too, which the step before it did not run.
        (StepRules(reuse_run=2, guidance_from=0.01), "f1 r1 f2 r2 r2 f2 r2 r2"),
        (StepRules(reuse_run=2, guidance_until=0.02), "f2 r2 r2 f2 r1 r1 f1 r1"),
    ],
)
def test_plans_of_eight_steps(rules: StepRules, expected: str) -> None:
    assert [round(each, 4) for each in rising_sigmas(8, 0.025, 4)[:4]] == [0, 0.0063, 0.0125, 0.0188]
    assert written(step_plan(8, 3.0, rules)) == expected


@pytest.mark.parametrize(
    ("num_steps", "part", "linear"),
    [(64, 0.5, 32), (7, 0.5, 3), (8, 0.75, 6), (2, 0.01, 1), (2, 0.99, 1), (100, 0.29, 29), (1, 0.5, 1)],
)
def test_the_linear_part_in_steps(num_steps: int, part: float, linear: int) -> None:
    assert linear_steps(num_steps, part) == linear


@given(st.integers(2, 200), st.floats(0.001, 0.999), st.floats(0.01, 0.99))
def test_a_schedule_that_rises_rises_to_the_end(num_steps: int, threshold: float, part: float) -> None:
    sigmas = [*rising_sigmas(num_steps, threshold, linear_steps(num_steps, part)), 1.0]
    rises = all(after > before - 1e-9 for before, after in pairwise(sigmas))
    assert rises or not is_rising(num_steps, threshold, part)
    assert sigmas[0] == 0


def test_the_schedule_of_distilled_weights() -> None:
    """FastMochi's model card: 8 steps, threshold 0.1, 6 linear steps. Behind those a parabola through 0.1 with the
    slope of the line, and through 1 two steps on."""
    slope = 0.1 / 6
    seventh = 0.1 + slope + (1 - 0.1 - 2 * slope) / 4
    expected = [*(slope * i for i in range(7)), seventh]
    assert rising_sigmas(8, 0.1, linear_steps(8, 0.75)) == pytest.approx(expected)


def test_only_what_differs_is_written() -> None:
    assert DEFAULT_RULES.to_json() == {}
    rules = StepRules(guidance_until=0.5, reuse_run=2)
    assert rules.to_json() == {"guidance_until": 0.5, "reuse_run": 2}
    assert StepRules(**rules.to_json()) == rules
