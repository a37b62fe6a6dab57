import pickle

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deployments.clip import ClipShape, latent_tokens
from deployments.messages import ReplicaInfo, Stage, VideoSpec
from deployments.settings import ModelSettings
from serve_app.config import load_settings
from serve_app.errors import TooLargeError
from serve_app.scheduling.fitting import advice, largest_fitting, memory_limit

SHAPES = load_settings("configs/shapes.yaml", {}).model
MOCHI = load_settings("configs/mochi-1-preview.yaml", {}).model

untimed = settings(deadline=None)


@st.composite
def requests(draw: st.DrawFn) -> tuple[ModelSettings, ClipShape]:
    model = draw(st.sampled_from([SHAPES, MOCHI]))
    width, height = (16 * draw(st.integers(d.minimum // 16, d.maximum // 16)) for d in (model.width, model.height))
    frames = 6 * draw(st.integers(model.num_frames.minimum // 6, model.num_frames.maximum // 6)) + 1
    return model, ClipShape(width, height, frames)


def suggested(model: ModelSettings, max_tokens: int, asked: ClipShape) -> list[ClipShape]:
    return largest_fitting(model, max_tokens, asked.width, asked.height, asked.num_frames)


def sampler(max_tokens: int | None) -> ReplicaInfo:
    return ReplicaInfo("r", Stage.SAMPLING, 1, "cpu", "mochi-1", max_tokens)


@pytest.mark.parametrize(
    ("width", "height", "frames", "tokens"),
    [(64, 64, 25, 80), (848, 480, 163, 44_520), (848, 480, 85, 23_850), (32, 48, 7, 12)],
)
def test_tokens(width: int, height: int, frames: int, tokens: int) -> None:
    spec = VideoSpec("a", "", width, height, frames, 24, 20, 3.0, 1)
    assert spec.clip.tokens == ClipShape(width, height, frames).tokens == tokens


@untimed
@given(requests())
def test_the_samplers_count_the_same_tokens(request: tuple[ModelSettings, ClipShape]) -> None:
    _, shape = request
    latents = (12, (shape.num_frames - 1) // 6 + 1, shape.height // 8, shape.width // 8)
    assert shape.tokens == latent_tokens(latents)


@pytest.mark.parametrize(
    ("told", "limit"),
    [([], None), ([None], None), ([5], 5), ([5, 9, 7], 9), ([5, None], None), ([0], 0)],
)
def test_the_largest_sampler_sets_the_limit(told: list[int | None], limit: int | None) -> None:
    assert memory_limit([sampler(tokens) for tokens in told]) == limit


def test_full_size_on_half_the_memory() -> None:
    assert largest_fitting(MOCHI, 22_260, 848, 480, 163) == [ClipShape(848, 480, 79), ClipShape(592, 336, 163)]


def test_both_smaller_and_shorter_where_neither_alone_fits() -> None:
    assert largest_fitting(SHAPES, 19, 128, 128, 25) == [ClipShape(48, 48, 7)]


def test_what_fits_is_left_as_it_is() -> None:
    assert largest_fitting(SHAPES, 80, 64, 64, 25) == [ClipShape(64, 64, 25)]


@untimed
@given(requests(), st.integers(0, 50_000))
def test_every_suggestion_fits_and_may_be_asked_for(request: tuple[ModelSettings, ClipShape], max_tokens: int) -> None:
    model, asked = request
    for shape in suggested(model, max_tokens, asked):
        assert shape.tokens <= max_tokens
        assert shape.width % 16 == shape.height % 16 == 0 and shape.num_frames % 6 == 1
        assert model.width.minimum <= shape.width <= asked.width
        assert model.height.minimum <= shape.height <= asked.height
        assert model.num_frames.minimum <= shape.num_frames <= asked.num_frames


@untimed
@given(requests(), st.integers(0, 50_000))
def test_the_next_longer_clip_does_not_fit(request: tuple[ModelSettings, ClipShape], max_tokens: int) -> None:
    model, asked = request
    for shape in suggested(model, max_tokens, asked):
        if shape.num_frames < asked.num_frames:
            assert ClipShape(shape.width, shape.height, shape.num_frames + 6).tokens > max_tokens


@untimed
@given(requests(), st.integers(0, 50_000))
def test_the_picture_keeps_its_shape_within_half_a_token(
    request: tuple[ModelSettings, ClipShape], max_tokens: int
) -> None:
    model, asked = request
    for shape in suggested(model, max_tokens, asked):
        height_kept = abs(shape.width * asked.height / asked.width - shape.height) <= 8
        assert height_kept or abs(shape.height * asked.width / asked.height - shape.width) <= 8


@untimed
@given(requests(), st.integers(0, 50_000))
def test_nothing_is_suggested_only_if_the_smallest_of_the_shape_does_not_fit(
    request: tuple[ModelSettings, ClipShape], max_tokens: int
) -> None:
    model, asked = request
    assume(not suggested(model, max_tokens, asked))
    shortest = ClipShape(asked.width, asked.height, model.num_frames.minimum)
    assert shortest.tokens > max_tokens
    square = max(model.width.minimum, model.height.minimum)
    if asked.width == asked.height:
        assert ClipShape(square, square, model.num_frames.minimum).tokens > max_tokens


def test_advice_names_what_was_asked_and_what_fits() -> None:
    spec = VideoSpec("a", "", 96, 64, 25, 24, 20, 3.0, 1)
    assert advice(SHAPES, 80, spec) == (
        "Instead of 96x64 with 25 frames ask for 96x64 with 13 frames or 80x48 with 25 frames."
    )
    assert "the samplers need more memory" in advice(SHAPES, 0, spec)


@pytest.mark.parametrize("told", ["", "Ask for less."])
def test_the_refusal_crosses_processes(told: str) -> None:
    error = pickle.loads(pickle.dumps(TooLargeError(120, 80, told)))
    assert type(error) is TooLargeError
    assert (error.status, error.param, error.code) == (400, "size", "too_large")
    assert (error.tokens, error.max_tokens, error.advice) == (120, 80, told)
    assert error.message == str(error) == str(TooLargeError(120, 80, told))
    assert error.message.endswith(told or "at most 80 fit.")
