"""The arithmetic of memory: what fits, and that more never costs less."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.clip import GUIDED_ROWS, LatentShape, latent_tokens
from deployments.sampler.memory_profile import MemoryProfile, SampleFootprint, fit_line, highest

SMALL: LatentShape = (12, 2, 4, 4)
LARGE: LatentShape = (12, 8, 8, 8)

costs = st.integers(0, 1 << 20)
profiles = st.builds(MemoryProfile, st.integers(1, 1 << 20), costs, costs, costs, costs)
sides = st.integers(1, 60).map(lambda half: 2 * half)
shapes = st.tuples(st.just(12), st.integers(1, 28), sides, sides)
groups = st.builds(SampleFootprint, shapes, st.integers(1, 16))
budgets = st.integers(0, 1 << 38)


def test_the_formula_by_hand() -> None:
    profile = MemoryProfile(
        step_token_bytes=100, step_row_bytes=7, held_token_bytes=10, held_row_bytes=3, table_token_bytes=5
    )
    assert (latent_tokens(SMALL), latent_tokens(LARGE)) == (8, 128)
    held = 2 * 83 + 8 * 5 + 4 * 1283 + 128 * 5
    assert profile.needed([SampleFootprint(SMALL, 2), SampleFootprint(LARGE, 4)]) == held + 4 * 12807
    assert profile.needed([]) == 0


def test_what_is_kept_for_later_steps_by_hand() -> None:
    """Beside what the samples keep, a pass of their shape holds all of its rows as the first block left them."""
    profile = MemoryProfile(100, 7, 10, 3, 5, kept_token_bytes=20)
    plain, cached = SampleFootprint(SMALL, 2), SampleFootprint(SMALL, 2, kept_rows=2)
    assert profile.needed([cached]) == profile.needed([plain]) + 2 * 8 * 20 + 2 * 8 * 20
    assert profile.needed([cached, plain]) == profile.needed([plain, plain]) + 2 * 8 * 20 + 4 * 8 * 20
    budget = profile.needed([cached])
    assert profile.fits([], cached, budget) and not profile.fits([], cached, budget - 1)
    assert profile.max_tokens(budget, kept_rows=2) == 8 < profile.max_tokens(budget)


def test_rows_that_go_one_after_the_other_take_the_working_memory_of_one() -> None:
    together = MemoryProfile(100, 7, 10, 3, 5, kept_token_bytes=20)
    apart = replace(together, rows_at_once=1)
    plain, cached = SampleFootprint(SMALL), SampleFootprint(SMALL, kept_rows=2)
    assert together.needed([plain]) - apart.needed([plain]) == 8 * 100 + 7
    assert together.needed([cached]) - apart.needed([cached]) == 8 * 100 + 7 + 8 * 20
    assert apart.needed([SampleFootprint(SMALL, 1)]) == together.needed([SampleFootprint(SMALL, 1)])
    budget = together.needed([SampleFootprint(LARGE)])
    assert together.max_tokens(budget) == 128 and apart.max_tokens(budget) > 200


def test_rows_of_one_shape_share_tables_and_batch() -> None:
    profile = MemoryProfile(100, 7, 10, 3, 5)
    assert profile.needed([SampleFootprint(SMALL, 2), SampleFootprint(SMALL, 1)]) == profile.needed(
        [SampleFootprint(SMALL, 3)]
    )


@given(profiles, st.integers(0, 3), shapes, budgets)
def test_the_largest_sample_is_the_largest_that_fits_alone(
    profile: MemoryProfile, rows_at_once: int, shape: LatentShape, budget: int
) -> None:
    profile = replace(profile, rows_at_once=rows_at_once)
    alone = profile.fits([], SampleFootprint(shape), budget)
    assert alone == (latent_tokens(shape) <= profile.max_tokens(budget))


@given(profiles, st.lists(groups, max_size=5), groups, budgets)
def test_what_fits_leaves_room_for_those_before(
    profile: MemoryProfile, others: list[SampleFootprint], candidate: SampleFootprint, budget: int
) -> None:
    if profile.fits(others, candidate, budget):
        assert profile.needed(others) <= budget
        assert profile.fits([], candidate, budget)
        assert profile.fits([candidate, *others[1:]], others[0], budget) if others else True


@given(profiles, st.lists(groups, max_size=5), groups)
def test_one_more_never_costs_less(
    profile: MemoryProfile, others: list[SampleFootprint], added: SampleFootprint
) -> None:
    more = profile.needed([*others, added])
    assert more > profile.needed(others)
    assert more <= profile.needed(others) + profile.needed([added])


@given(profiles, shapes, st.integers(1, 16), st.integers(0, 3))
def test_larger_never_costs_less(profile: MemoryProfile, shape: LatentShape, rows: int, longer: int) -> None:
    larger = (shape[0], shape[1] + longer, shape[2] + 2 * longer, shape[3])
    assert profile.needed([SampleFootprint(larger, rows)]) >= profile.needed([SampleFootprint(shape, rows)])


@given(profiles, budgets, st.integers(0, 1 << 30))
def test_more_memory_never_takes_less(profile: MemoryProfile, budget: int, more: int) -> None:
    assert profile.max_tokens(budget + more) >= profile.max_tokens(budget)


@given(profiles, shapes, st.integers(-(1 << 30), 0))
def test_nothing_fits_in_nothing(profile: MemoryProfile, shape: LatentShape, budget: int) -> None:
    assert profile.max_tokens(budget) == 0
    assert not profile.fits([], SampleFootprint(shape), budget)


points = st.tuples(st.integers(0, 50_000), st.integers(0, 1 << 36))


@given(st.lists(points, min_size=2).filter(lambda all: len({x for x, _ in all}) > 1), st.integers(0, 1 << 20))
def test_the_line_lies_on_or_above_every_point(measured: list[tuple[int, int]], least: int) -> None:
    slope, intercept = fit_line(measured, least)
    assert slope >= least and intercept >= 0
    assert all(slope * x + intercept >= y for x, y in measured)


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 30), st.sets(st.integers(1, 50_000), min_size=2, max_size=5))
def test_a_true_line_is_found_but_for_its_intercept(slope: int, intercept: int, sizes: set[int]) -> None:
    found, lift = fit_line([(x, slope * x + intercept) for x in sizes], 1)
    assert slope <= found <= slope + intercept / max(sizes) + 1
    assert 0 <= lift <= intercept
    assert fit_line([(x, slope * x) for x in sizes], 1) == (slope, 0)


def test_a_small_measurement_too_high_does_not_make_tokens_cheap() -> None:
    assert fit_line([(64, 900_000), (256, 1_024_000)], 1) == (4000, 644_000)


def test_noise_that_falls_is_not_believed() -> None:
    assert fit_line([(64, 5_000_000), (256, 1_000_000)], 4096) == (4096, 5_000_000 - 64 * 4096)


@pytest.mark.parametrize("measured", [[], [(8, 1)], [(8, 1), (8, 2)]])
def test_one_size_makes_no_line(measured: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="two sizes"):
        fit_line(measured, 1)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="step_token_bytes is 0"):
        MemoryProfile(0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="held_row_bytes is -1"):
        MemoryProfile(1, 0, 0, -1, 0)
    assert SampleFootprint(SMALL).cfg_rows == GUIDED_ROWS


@given(st.lists(profiles, min_size=1, max_size=3), st.lists(groups, max_size=3))
def test_the_highest_of_some_profiles_needs_no_less_than_any(
    some: list[MemoryProfile], samples: list[SampleFootprint]
) -> None:
    assert highest(some).needed(samples) >= max(profile.needed(samples) for profile in some)
    assert highest(some[:1]) == some[0]
