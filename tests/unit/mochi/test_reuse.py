"""Steps that reuse the blocks, and steps without guidance, against diffusers' own transformer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from deployments.messages import VideoSpec
from deployments.mochi.denoise import Sample, denoise_step
from deployments.mochi.reuse import PassReuse
from deployments.replica.host import one_thread
from deployments.step_rules import StepRules
from tests.support.examples import examples
from tests.support.workers.fakes import spec
from tests.support.workers.step_scenarios import embeds, first_state, to_sample, transformer

# diffusers asks for fp32 autocast on the CPU, which torch refuses with a warning
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")

CACHED = StepRules(reuse_run=2, reuse_until=0.5)
EVERY_SECOND = StepRules(reuse_run=1)
EARLY_GUIDANCE = StepRules(guidance_until=0.02)
BOTH = StepRules(guidance_until=0.02, reuse_run=2)
RULES = (StepRules(), CACHED, EVERY_SECOND, EARLY_GUIDANCE, BOTH)


def video(number: int, rules: StepRules, **changes: Any) -> VideoSpec:
    prompt = ("a red circle moving right", "a blue square", "", "a green star moving up slowly")[number % 4]
    return spec(prompt, width=32, height=32, num_inference_steps=5 + number, seed=number, rules=rules, **changes)


@pytest.fixture(autouse=True)
def one_thread_without_grad() -> Iterator[None]:
    with one_thread(), torch.no_grad():
        yield


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def run(*samples: Sample) -> list[Tensor]:
    """The final latents of samples that are stepped together."""
    moving = list(samples)
    while any(not sample.done for sample in moving):
        stepped = iter(denoise_step(transformer(), [sample for sample in moving if not sample.done]))
        moving = [sample if sample.done else next(stepped) for sample in moving]
    return [sample.latents for sample in moving]


class StockRow:
    """One row through diffusers' own forward pass, whose last block says what it is told to say."""

    def __init__(self) -> None:
        self.reuses = False
        self._first, self._residual = torch.empty(0), torch.empty(0)

    def velocity(self, latents: Tensor, text: Tensor, mask: Tensor, timestep: Tensor) -> Tensor:
        blocks = transformer().transformer_blocks
        hooks = [blocks[0].register_forward_hook(self._after_first), blocks[-1].register_forward_hook(self._after_last)]
        try:
            out: Tensor = transformer()(latents[None], text[None], timestep[None], mask[None]).sample[0]
        finally:
            for hook in hooks:
                hook.remove()
        return out

    def _after_first(self, module: Any, given: Any, out: tuple[Tensor, Tensor]) -> None:
        self._first = out[0]

    def _after_last(self, module: Any, given: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.reuses:
            self._residual = out[0] - self._first
        return self._first + self._residual, out[1]


def by_diffusers(video: VideoSpec) -> Tensor:
    """What the rules say, in the plainest way."""
    sample, tensors = to_sample(first_state(video)), embeds(video.prompt, video.negative_prompt)
    latents, prompt, negative = sample.latents, StockRow(), StockRow()
    for number, step in enumerate(video.plan.steps):
        prompt.reuses = negative.reuses = step.reuses
        timestep = sample.sigmas[number] * 1000
        velocity = prompt.velocity(latents, tensors["prompt_embeds"], tensors["prompt_mask"], timestep)
        if step.rows > 1:
            other = negative.velocity(latents, tensors["negative_embeds"], tensors["negative_mask"], timestep)
            velocity = other + video.guidance_scale * (velocity - other)
        latents = latents + (sample.sigmas[number + 1] - sample.sigmas[number]) * velocity
    return latents


@pytest.mark.parametrize("rules", RULES)
def test_the_rules_on_diffusers_own_blocks(rules: StepRules) -> None:
    for number in (0, 1):
        wanted = video(number, rules)
        (got,) = run(to_sample(first_state(wanted)))
        assert relative_error(got, by_diffusers(wanted)) <= 1e-4


def test_the_rules_make_a_difference() -> None:
    finals = [run(to_sample(first_state(video(1, rules))))[0] for rules in RULES]
    for number, one in enumerate(finals):
        assert all(relative_error(one, other) > 1e-3 for other in finals[number + 1 :])


def test_where_nothing_is_reused_the_bits_are_those_without_rules() -> None:
    """Steps that are computed in full are the same ones, whatever is kept of them."""
    plain, cached = (to_sample(first_state(video(0, rules))) for rules in (StepRules(), EVERY_SECOND))
    (one,), (other,) = denoise_step(transformer(), [plain]), denoise_step(transformer(), [cached])
    assert one.residual is None and other.residual is not None
    assert torch.equal(one.latents, other.latents)
    never = StepRules(reuse_from=0.99, reuse_run=3, guidance_until=1.0)
    assert torch.equal(run(to_sample(first_state(video(0, never))))[0], run(plain)[0])


companies = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(RULES), st.sampled_from((1.0, 3.0))), min_size=2, max_size=3
)


@settings(max_examples=examples(0.1))
@given(companies)
def test_alone_is_as_in_company(company: list[tuple[int, StepRules, float]]) -> None:
    """Rows that are computed and rows that are not, guided and not, part and meet in each pass."""
    samples = [to_sample(first_state(video(n, rules, guidance_scale=scale))) for n, rules, scale in company]
    for together, sample in zip(run(*samples), samples, strict=True):
        (alone,) = run(sample)
        assert relative_error(together, alone) <= 1e-4


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_rows_in_several_passes_make_what_they_make_in_one(rows_at_once: int) -> None:
    """Whether they are guided, reuse or neither; the first step of all keeps what the second reuses."""
    samples = [to_sample(first_state(video(n, rules))) for n, rules in enumerate((EVERY_SECOND, BOTH, StepRules()))]
    for _ in range(3):
        together = denoise_step(transformer(), samples)
        apart = denoise_step(transformer(), samples, rows_at_once=rows_at_once)
        for one, other in zip(apart, together, strict=True):
            assert relative_error(one.latents, other.latents) <= 1e-6
            assert [row.shape for row in one.residual or ()] == [row.shape for row in other.residual or ()]
        samples = together


def test_what_is_kept_is_given_up_with_its_last_use() -> None:
    sample = to_sample(first_state(video(3, BOTH)))
    rows = []
    while not sample.done:
        (sample,) = denoise_step(transformer(), [sample])
        rows.append(0 if sample.residual is None else len(sample.residual))
        assert sample.resumable is (sample.residual is None)
    # f2 r2 r2 f2 r1 r1 f1 r1: what the next step reuses.
    assert rows == [2, 2, 0, 1, 1, 0, 1, 0]


def test_a_sample_that_lacks_what_it_is_to_reuse_is_refused() -> None:
    sample = to_sample(first_state(video(1, EVERY_SECOND)))
    (stepped,) = denoise_step(transformer(), [sample])
    with pytest.raises(ValueError, match="reuse the blocks of the one before"):
        denoise_step(transformer(), [replace(stepped, residual=None)])


def test_a_step_that_reuses_never_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever needs one on the host raises."""
    samples = [to_sample(first_state(video(n, rules))) for n, rules in enumerate((BOTH, EARLY_GUIDANCE))]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for number in (1, 2):
            samples = denoise_step(transformer(), samples)
            assert [sample.step for sample in samples] == [number, number]


def test_rows_part_and_meet() -> None:
    early = torch.arange(8.0).view(4, 1, 2)
    reuse = PassReuse([None, torch.full((1, 2), 10.0), None, None], [True, True, False, True])
    full = reuse.full_rows(early)
    assert reuse.full("abcd") == ["a", "c", "d"] and torch.equal(full, early[[0, 2, 3]])
    assert torch.equal(reuse.join(early, full + 1), early + torch.tensor([1.0, 10.0, 1.0, 1.0])[:, None, None])
    assert [None if kept is None else float(kept[0, 0]) for kept in reuse.residuals] == [1.0, 10.0, None, 1.0]
