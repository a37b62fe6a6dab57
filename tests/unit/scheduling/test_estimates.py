"""The cost model: estimates in GPU-seconds, corrected by what was measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import VIDEO_STAGES, Stage, VideoSpec
from deployments.step_rules import StepRules
from serve_app.scheduling.estimates import CostModel

FULL = VideoSpec("a", "", 848, 480, 163, 30, 64, 4.5, 1)
SMALL = VideoSpec("a", "", 96, 64, 25, 24, 20, 3.0, 1)
PLAIN = replace(SMALL, guidance_scale=1.0)

specs = st.builds(
    VideoSpec,
    prompt=st.just("a"),
    negative_prompt=st.just(""),
    width=st.integers(1, 60).map(lambda n: n * 16),
    height=st.integers(1, 60).map(lambda n: n * 16),
    num_frames=st.integers(0, 30).map(lambda n: 6 * n + 1),
    fps=st.just(24),
    num_inference_steps=st.integers(1, 200),
    guidance_scale=st.floats(0, 20),
    seed=st.just(1),
)
spans = st.tuples(
    st.sampled_from(VIDEO_STAGES), specs, st.integers(0, 200), st.floats(allow_nan=True, allow_infinity=True, width=32)
)


def test_before_anything_was_measured_the_estimate_goes_with_steps_tokens_and_rows() -> None:
    model = CostModel()
    one = model.estimate(Stage.SAMPLING, PLAIN, 1)
    assert model.estimate(Stage.SAMPLING, PLAIN, 20) == pytest.approx(20 * one)
    assert model.estimate(Stage.SAMPLING, SMALL, 1) == pytest.approx(2 * one)
    assert model.estimate(Stage.SAMPLING, replace(PLAIN, width=192), 1) == pytest.approx(2 * one)
    assert model.estimate(Stage.DECODING, replace(SMALL, width=192), 0) == pytest.approx(
        2 * model.estimate(Stage.DECODING, SMALL, 0)
    )
    assert not any(model.is_measured(stage) for stage in VIDEO_STAGES)


def test_the_nominal_rates_are_those_of_the_full_size() -> None:
    model = CostModel()
    assert 400 < model.estimate(Stage.SAMPLING, FULL, 64) < 700
    assert 4 < model.estimate(Stage.DECODING, FULL, 0) < 12
    assert model.estimate(Stage.ENCODING, FULL, 0) == model.estimate(Stage.ENCODING, SMALL, 64) > 0


def test_one_measurement_replaces_the_nominal_rate_and_scales_those_of_the_other_stages() -> None:
    model = CostModel()
    nominal = {stage: model.estimate(stage, SMALL, 20) for stage in VIDEO_STAGES}
    model.observe(Stage.SAMPLING, SMALL, 5, 10.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 20) == pytest.approx(40.0)
    assert model.is_measured(Stage.SAMPLING)
    assert not model.is_measured(Stage.DECODING)
    assert model.estimate(Stage.DECODING, SMALL, 0) / nominal[Stage.DECODING] == pytest.approx(
        40.0 / nominal[Stage.SAMPLING]
    )


def test_each_size_and_number_of_rows_has_its_own_rate() -> None:
    model = CostModel()
    model.observe(Stage.SAMPLING, FULL, 2, 20.0)
    model.observe(Stage.SAMPLING, SMALL, 2, 0.02)
    model.observe(Stage.SAMPLING, PLAIN, 2, 0.018)
    assert model.estimate(Stage.SAMPLING, FULL, 1) == pytest.approx(10.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 1) == pytest.approx(0.01)
    assert model.estimate(Stage.SAMPLING, PLAIN, 1) == pytest.approx(0.009)


def test_a_size_that_was_never_measured_takes_the_rate_per_token_and_row() -> None:
    model = CostModel()
    model.observe(Stage.SAMPLING, SMALL, 10, 8.0)
    per_unit = 8.0 / (10 * 2 * SMALL.clip.tokens)
    assert model.estimate(Stage.SAMPLING, PLAIN, 10) == pytest.approx(4.0)
    assert model.estimate(Stage.SAMPLING, FULL, 1) == pytest.approx(per_unit * 2 * FULL.clip.tokens)
    model.observe(Stage.DECODING, SMALL, 0, 3.0)
    assert model.estimate(Stage.DECODING, replace(SMALL, width=192), 0) == pytest.approx(6.0)


def test_encoding_is_the_same_for_all() -> None:
    model = CostModel()
    model.observe(Stage.ENCODING, FULL, 0, 0.5)
    assert model.estimate(Stage.ENCODING, SMALL, 0) == pytest.approx(0.5)
    assert model.estimate(Stage.ENCODING, FULL, 64) == pytest.approx(0.5)


def test_decoding_does_not_depend_on_guidance() -> None:
    model = CostModel()
    model.observe(Stage.DECODING, SMALL, 0, 2.0)
    model.observe(Stage.DECODING, FULL, 0, 2.0)
    assert model.estimate(Stage.DECODING, PLAIN, 0) == pytest.approx(2.0)


def test_the_rate_follows_a_device_that_became_slower_and_not_one_that_was_busy_once() -> None:
    model = CostModel()
    for _ in range(100):
        model.observe(Stage.SAMPLING, SMALL, 1, 1.0)
    model.observe(Stage.SAMPLING, SMALL, 1, 30.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 1) == pytest.approx(1.0, rel=0.02)
    for _ in range(10):
        model.observe(Stage.SAMPLING, SMALL, 1, 3.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 1) == pytest.approx(3.0, rel=0.02)


def test_a_long_span_counts_more_than_a_short_one() -> None:
    model = CostModel()
    model.observe(Stage.SAMPLING, SMALL, 1, 5.0)
    model.observe(Stage.SAMPLING, SMALL, 100, 100.0)
    model.observe(Stage.SAMPLING, SMALL, 1, 5.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 1) == pytest.approx(1.0)


def test_a_size_that_was_never_measured_is_scaled_by_what_was_fitted_to_others() -> None:
    """A step of 1 ms a pass and 10 us a token: by the rate of the small size the large one took four times as long."""
    model = CostModel()

    def step_s(spec: VideoSpec) -> float:
        return 1e-2 + 1e-5 * spec.clip.tokens

    for width in (64, 96, 128):
        model.observe(Stage.SAMPLING, replace(PLAIN, width=width), 10, 10 * step_s(replace(PLAIN, width=width)))
    assert model.estimate(Stage.SAMPLING, replace(FULL, guidance_scale=1.0), 1) == pytest.approx(
        step_s(replace(FULL, guidance_scale=1.0)), rel=0.02
    )


def test_samples_that_share_passes_tell_what_a_pass_takes() -> None:
    model = CostModel()
    for samples in (1, 4):
        model.observe(Stage.SAMPLING, PLAIN, 10, 10 * (0.02 / samples + 0.01), passes=10 / samples)
    assert model.step_time(PLAIN) == pytest.approx((0.02, 0.01))


def test_how_long_a_slot_is_held_is_measured_apart_from_the_device() -> None:
    model = CostModel()
    model.observe(Stage.DECODING, SMALL, 0, 2.0)
    assert model.held_s(Stage.DECODING, SMALL) == pytest.approx(2.0)
    model.observe_held(Stage.DECODING, SMALL, 3.5)
    assert model.held_s(Stage.DECODING, SMALL) == pytest.approx(3.5)
    assert model.estimate(Stage.DECODING, SMALL, 0) == pytest.approx(2.0)
    assert model.held_s(Stage.SAMPLING, SMALL) == 0.0


@pytest.mark.parametrize(("steps", "device_s"), [(0, 3.0), (5, 0.0), (5, -1.0), (5, float("nan")), (5, float("inf"))])
def test_a_span_without_steps_or_seconds_teaches_nothing(steps: int, device_s: float) -> None:
    model = CostModel()
    before = model.estimate(Stage.SAMPLING, SMALL, 5)
    model.observe(Stage.SAMPLING, SMALL, steps, device_s)
    assert not model.is_measured(Stage.SAMPLING)
    assert model.estimate(Stage.SAMPLING, SMALL, 5) == before


@given(st.lists(spans, max_size=20), specs, st.sampled_from(VIDEO_STAGES), st.integers(-5, 200))
def test_every_estimate_is_finite_and_above_zero(
    seen: list[tuple[Stage, VideoSpec, int, float]], spec: VideoSpec, stage: Stage, steps_left: int
) -> None:
    model = CostModel()
    for span in seen:
        model.observe(*span)
    assert 0 < model.estimate(stage, spec, steps_left) < float("inf")


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.5, 2.0)), min_size=1, max_size=30), st.integers(1, 100))
def test_an_estimate_lies_between_the_rates_measured(seen: list[tuple[int, float]], steps_left: int) -> None:
    model = CostModel()
    for steps, per_step in seen:
        model.observe(Stage.SAMPLING, SMALL, steps, steps * per_step)
    rates = [per_step for _, per_step in seen]
    estimate = model.estimate(Stage.SAMPLING, SMALL, steps_left) / steps_left
    assert min(rates) * (1 - 1e-9) <= estimate <= max(rates) * (1 + 1e-9)


def test_a_video_with_a_lora_has_a_rate_of_its_own() -> None:
    adapted = replace(SMALL, lora="ink")
    model = CostModel()
    model.observe(Stage.SAMPLING, SMALL, 20, 20.0)
    assert model.estimate(Stage.SAMPLING, adapted, 20) == pytest.approx(20.0)
    model.observe(Stage.SAMPLING, adapted, 20, 24.0)
    assert model.estimate(Stage.SAMPLING, adapted, 20) == pytest.approx(24.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 20) == pytest.approx(20.0)
    assert model.estimate(Stage.SAMPLING, replace(adapted, lora_scale=0.0), 20) == pytest.approx(20.0)


def test_a_quality_that_does_less_costs_less_and_has_a_rate_of_its_own() -> None:
    fast = replace(SMALL, quality="fast", rules=StepRules(guidance_until=0.02, reuse_run=1))
    assert fast.plan.mean_full_rows < SMALL.plan.mean_full_rows == 2
    model = CostModel()
    share = fast.plan.mean_full_rows / 2
    assert model.estimate(Stage.SAMPLING, fast, 20) == pytest.approx(share * model.estimate(Stage.SAMPLING, SMALL, 20))
    model.observe(Stage.SAMPLING, SMALL, 20, 20.0)
    assert model.estimate(Stage.SAMPLING, fast, 20) == pytest.approx(share * 20.0)
    model.observe(Stage.SAMPLING, fast, 20, 15.0)
    assert model.estimate(Stage.SAMPLING, fast, 20) == pytest.approx(15.0)
    assert model.estimate(Stage.SAMPLING, SMALL, 20) == pytest.approx(20.0)
