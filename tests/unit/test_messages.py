"""Requests as they are kept: what was kept before there were qualities and LoRAs is read, and is the same request."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.messages import VideoSpec
from deployments.step_rules import QUALITIES, StepRules

SPEC = VideoSpec("a red circle", "", 64, 48, 25, 24, 8, 3.0, seed=7)
OLD = (
    '{"prompt": "a red circle", "negative_prompt": "", "width": 64, "height": 48, "num_frames": 25, "fps": 24, '
    '"num_inference_steps": 8, "guidance_scale": 3.0, "seed": 7, "exact": false}'
)

rules = st.builds(
    StepRules,
    threshold_noise=st.sampled_from((0.025, 0.1)),
    linear_part=st.sampled_from((0.5, 0.75)),
    guidance_until=st.floats(0, 1),
    reuse_run=st.integers(0, 3),
)
loras = st.sampled_from(({}, {"lora": "ink"}, {"lora": "ink", "lora_scale": 0.0}, {"lora": "clay", "lora_scale": 0.5}))
specs = st.builds(
    lambda lora, **more: replace(SPEC, **lora, **more), loras, quality=st.sampled_from(QUALITIES), rules=rules
)


def test_a_request_without_a_quality_and_a_lora_is_kept_as_it_always_was() -> None:
    assert json.dumps(SPEC.to_json()) == OLD
    assert VideoSpec.from_json(json.loads(OLD)) == SPEC


@given(specs)
def test_what_is_kept_comes_back(spec: VideoSpec) -> None:
    assert VideoSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(specs, specs)
def test_other_requests_are_kept_otherwise(one: VideoSpec, other: VideoSpec) -> None:
    assert (one.to_json() == other.to_json()) is (one == other)


@pytest.mark.parametrize("quality", QUALITIES)
def test_rules_are_kept_with_the_quality(quality: str) -> None:
    kept = VideoSpec.from_json({**json.loads(OLD), "quality": quality, "rules": {"reuse_run": 1}})
    assert (kept.quality, kept.rules) == (quality, StepRules(reuse_run=1))
