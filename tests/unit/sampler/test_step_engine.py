"""The whole engine against the stock pipeline: whatever happens to a sample on its way, its latents are the same.

Requests of a quality that does less are compared with themselves alone; what that is, `tests/unit/mochi/test_reuse.py`
compares with the stock blocks.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import combinations
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deployments.messages import VideoSpec
from deployments.replica.host import one_thread
from deployments.sampler.state import pack
from deployments.step_rules import DEFAULT_RULES, StepRules
from tests.support.examples import examples
from tests.support.workers.fakes import spec
from tests.support.workers.step_scenarios import NAME, Plan, PlayedSample, Scenario, advance, first_state, play, read
from tests.support.workers.stock import stock_latents, stock_pipeline

# diffusers asks for fp32 autocast on the CPU, which torch refuses with a warning
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

MAX_ERROR = 1e-4
PROMPTS = ("", "a red circle", "a blue square moving up", "a red circle and a green triangle moving left")
SIZES = ((32, 32, 7), (48, 32, 13))
GUIDANCE = (1.0, 1.5, 3.0, 6.0)
RULES = (
    DEFAULT_RULES,
    StepRules(guidance_until=0.02),
    DEFAULT_RULES,
    StepRules(reuse_run=2, reuse_until=0.5),
    StepRules(threshold_noise=0.1, linear_part=0.75, guidance_from=0.01, reuse_run=1),
)
IN_8_BITS = (StepRules(attention="fp8"), StepRules(attention="fp8", guidance_from=0.01, reuse_run=1))
ALONE = 1  # tokens: no two samples fit into a pass


def request(number: int) -> VideoSpec:
    """The requests differ in everything, and are so few that the pipeline runs each but once."""
    width, height, num_frames = SIZES[number % 2]
    return spec(
        PROMPTS[number % 4],
        negative_prompt=PROMPTS[number // 3 % 4],
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=2 + number * 5 % 11,
        guidance_scale=GUIDANCE[number // 2 % 4],
        seed=number,
        rules=IN_8_BITS[number // 11 % 2] if number % 11 == 6 else RULES[number % len(RULES)],
    )


REQUESTS = [request(number) for number in range(44)]

# Samples that never meet show nothing: most are not exact, come to one engine soon, and have one size.
POOLS = (REQUESTS[0::2], REQUESTS[1::2], REQUESTS)

engines = st.sampled_from((0, 0, 0, 1))
steps = st.integers(1, 11)


def plans(pool: list[VideoSpec]) -> st.SearchStrategy[Plan]:
    exact = st.sampled_from((False, False, False, False, True))
    return st.builds(
        Plan,
        video=st.builds(lambda video, exact: replace(video, exact=exact), st.sampled_from(pool), exact),
        arrival=st.integers(0, 4),
        engine=engines,
        checkpoint_every=st.integers(0, 3),
        moves=st.lists(st.tuples(steps, engines), max_size=3).map(lambda moves: tuple(sorted(moves))),
        mid_step=st.booleans(),
        cancelled_at=st.none() | st.none() | steps,
    )


scenarios = st.builds(
    Scenario,
    plans=st.sampled_from(POOLS).flatmap(lambda pool: st.lists(plans(pool), min_size=2, max_size=5).map(tuple)),
    max_tokens=st.sampled_from((400, 400, 54, ALONE)),
    crashes=st.lists(st.tuples(st.integers(1, 15), engines), max_size=2).map(tuple),
)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Tensors this small are not worth a second thread, and their number may change the last bits."""
    with one_thread():
        yield


@cache
def pipeline() -> Any:
    return stock_pipeline()


@cache
def reference(video: VideoSpec) -> Tensor:
    return stock_latents(pipeline(), video) if video.rules == DEFAULT_RULES else undisturbed(video)


@cache
def undisturbed(video: VideoSpec) -> Tensor:
    """What the engine makes of the request alone, with nothing happening."""
    (sample,) = play(Scenario((Plan(video),), ALONE))
    return final(sample)


def final(sample: PlayedSample) -> Tensor:
    assert sample.latents is not None
    return sample.latents


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def check(scenario: Scenario) -> list[PlayedSample]:
    """Each that was not cancelled ends as if alone, and no step was run twice but those a crash threw away."""
    played = play(scenario)
    for sample in played:
        if not sample.cancelled:
            check_final(sample.plan.video, final(sample))
            assert sample.steps_run == sample.plan.video.num_inference_steps + sample.steps_lost
        assert sample.steps_lost == 0 or scenario.crashes
    return played


def check_final(video: VideoSpec, latents: Tensor) -> None:
    assert latents.dtype == torch.float32
    assert relative_error(latents, reference(replace(video, exact=False))) <= MAX_ERROR
    if video.exact:
        assert torch.equal(latents, undisturbed(video))


# What is slow here is other tests beside this one, which is no sign of a bad strategy.
unhurried = settings(suppress_health_check=[HealthCheck.too_slow])


@settings(unhurried, max_examples=examples(0.5))
@given(scenarios)
def test_whatever_happens_the_latents_are_the_pipelines(scenario: Scenario) -> None:
    check(scenario)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(unhurried, max_examples=examples(4))
@given(scenarios)
def test_whatever_happens_two_thousand_times(scenario: Scenario) -> None:
    check(scenario)


@pytest.mark.slow
def test_a_sample_begun_in_one_process_is_ended_in_another() -> None:
    """Slow for what a process loads. On a server: tests/system/server/test_moving_samples.py."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other_process:
        video = replace(REQUESTS[4], exact=True)
        steps = video.num_inference_steps
        middle = next(step for step in range(steps // 2, steps) if video.plan.resumable(step))
        begun = advance(pack(NAME, first_state(video)), video, until=middle)
        data = other_process.submit(advance, begun, video, steps).result()
        check_final(video, read(data, video).latents)


def test_every_kind_of_event_at_once() -> None:
    """Hypothesis finds these too, now and then; here each is sure to happen."""
    slow, guided, unguided, other = (REQUESTS[number] for number in (2, 4, 18, 9))
    scenario = Scenario(
        plans=(
            Plan(slow, checkpoint_every=2, moves=((3, 1), (5, 0))),
            Plan(guided, arrival=1, mid_step=True, moves=((2, 1),)),
            Plan(unguided, arrival=2, checkpoint_every=1),
            Plan(other, arrival=2, cancelled_at=2),
            Plan(replace(guided, exact=True), arrival=3, checkpoint_every=2, moves=((4, 1),)),
        ),
        max_tokens=200,
        crashes=((4, 0), (6, 0), (9, 1)),
    )
    check(scenario)
    ended = play(scenario)
    assert [sample.cancelled for sample in ended] == [False, False, False, True, False]
    assert sum(sample.steps_lost for sample in ended) > 0
    assert sum(sample.moves for sample in ended) >= 3


def test_each_step_of_a_cached_sample_may_be_its_last_on_an_engine() -> None:
    """Wherever it is asked to park, it goes on elsewhere from a step that is computed in full, beside others."""
    cached, other = (replace(REQUESTS[number], num_inference_steps=8) for number in (18, 14))
    assert [step.reuses for step in cached.plan.steps] == [False, True, True, False, True, True, False, False]
    for asked in range(1, 8):
        mid_step = asked % 2 == 0
        plan = Plan(cached, arrival=1, moves=((asked, 1),), mid_step=mid_step)
        scenario = Scenario((Plan(other), plan, Plan(replace(cached, exact=True), arrival=1)), max_tokens=400)
        played = check(scenario)
        # In the middle of a pass, which is not always its own.
        allowed = [min(step for step in (3, 6, 7, 8) if step >= at) for at in (asked, asked + mid_step)]
        assert played[1].moved_at in [[] if step == 8 else [step] for step in allowed]
    crash = Scenario((Plan(cached, checkpoint_every=1),), 400, crashes=((2, 0),))
    (lost,) = check(crash)
    assert lost.steps_lost > 0 and lost.steps_run == 8 + lost.steps_lost


def test_samples_with_different_loras_are_what_each_is_alone() -> None:
    """Side by side with each other and with one that has none, parked, moved and lost; no pass mixes them."""
    plain = replace(REQUESTS[4], num_inference_steps=6, quality="exact", rules=DEFAULT_RULES)
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"lora": "ink"},
        {"lora": "ink", "lora_scale": 0.5},
        {"lora": "clay"},
        {"lora": "ink"},
    )
    videos = [replace(plain, seed=100 + n, **kind) for n, kind in enumerate(kinds)]
    scenario = Scenario(
        plans=(
            Plan(videos[0], moves=((3, 1),)),
            Plan(videos[1], checkpoint_every=1, moves=((2, 1), (4, 0))),
            Plan(videos[2], arrival=1, mid_step=True, moves=((2, 1),)),
            Plan(videos[3], arrival=1, checkpoint_every=2),
            Plan(videos[4], arrival=2),
        ),
        max_tokens=400,
        crashes=((9, 0),),
    )
    ended = play(scenario)
    for sample in ended:
        assert relative_error(final(sample), undisturbed(sample.plan.video)) <= MAX_ERROR
    assert sum(sample.moves for sample in ended) >= 3 and sum(sample.steps_lost for sample in ended) > 0
    changed = [undisturbed(replace(plain, **kind)) for kind in kinds[:4]]
    assert all(relative_error(one, other) > 0.01 for one, other in combinations(changed, 2))
    assert torch.equal(undisturbed(replace(plain, lora="ink", lora_scale=0.0)), changed[0])


def test_the_same_scenario_gives_the_same_bits() -> None:
    """One that fails can be played again."""
    plans = tuple(Plan(video, arrival=n // 2, moves=((2, n % 2),)) for n, video in enumerate(REQUESTS[10:15]))
    first, second = (play(Scenario(plans, 48)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(final(one), final(other))
