"""Previews: the fit, its file, the picture, and where the map comes from."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import PermanentError, StorageUnavailableError
from deployments.mochi.preview import (
    FILE,
    PreviewFit,
    PreviewMap,
    find_preview,
    from_json,
    keep_preview,
    load_preview,
    predicted_clean,
    preview_image,
    preview_key,
    to_json,
)
from tests.support.workers.fakes import SHAPES
from tests.support.workers.memory_store import MemoryStore

KEY = preview_key("abc")


def a_map(seed: int = 0) -> PreviewMap:
    generator = torch.Generator().manual_seed(seed)
    return PreviewMap(torch.randn(12, 3, generator=generator) * 0.05, torch.rand(3, generator=generator) * 0.2 + 0.4)


def same(first: PreviewMap | None, second: PreviewMap | None) -> bool:
    assert first is not None and second is not None
    return torch.equal(first.weights, second.weights) and torch.equal(first.bias, second.bias)


def latents_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(12, *shape, generator=torch.Generator().manual_seed(seed))


def rendered(preview: PreviewMap, latents: torch.Tensor) -> torch.Tensor:
    """The frames that a decoder would make that is this very map: [6 (T - 1) + 1, 8h, 8w, 3] uint8."""
    frames = []
    for index in range(latents.shape[1]):
        picture = (preview.rgb(latents[:, index]).clamp(0, 1) * 255).round().to(torch.uint8)
        large = picture.repeat_interleave(8, 0).repeat_interleave(8, 1)
        frames += [large] * (1 if index == 0 else 6)
    return torch.stack(frames)


def fitted_to(latents: torch.Tensor, frames: torch.Tensor) -> PreviewMap:
    """The map of one clip: the first latent frame stands for one frame, each other one for six."""
    fit = PreviewFit()
    for index in range(latents.shape[1]):
        end = 6 * index + 1
        fit.add(latents[:, index], frames[max(0, end - 6) : end])
    return fit.solve()


def test_a_linear_decoders_map_is_found() -> None:
    latents, wanted = latents_of(5, 16, 12), a_map()
    fitted = fitted_to(latents, rendered(wanted, latents))
    assert fitted.weights.dtype == fitted.bias.dtype == torch.float32
    torch.testing.assert_close(fitted.weights, wanted.weights, atol=2e-3, rtol=0)
    torch.testing.assert_close(fitted.bias, wanted.bias, atol=2e-3, rtol=0)


def test_the_colour_is_the_mean_of_block_and_time() -> None:
    """A chessboard of black and white that flickers is grey."""
    frames = torch.zeros(7, 16, 16, 3, dtype=torch.uint8)
    frames[:, ::2] = 255
    frames[1::2] = 255 - frames[1::2]
    fitted = fitted_to(latents_of(2, 2, 2), frames)
    torch.testing.assert_close(fitted.rgb(latents_of(1, 2, 2)[:, 0]), torch.full((2, 2, 3), 0.5))


@given(st.floats(0, 1e-3), st.integers(0, 255))
def test_a_near_constant_clip_does_not_blow_up(wobble: float, grey: int) -> None:
    latents = 0.3 + wobble * latents_of(3, 4, 4)
    frames = torch.full((13, 32, 32, 3), grey, dtype=torch.uint8)
    frames[0, :8, :8] = 255 - grey
    fitted = fitted_to(latents, frames)
    assert float(fitted.weights.abs().max()) < 1
    assert bool(fitted.rgb(latents_of(1, 4, 4)[:, 0]).isfinite().all())


def test_several_clips_are_one_fit() -> None:
    wanted, fit = a_map(), PreviewFit()
    for seed in range(3):
        latents = latents_of(1, 8, 8, seed=seed)
        fit.add(latents[:, 0], rendered(wanted, latents))
    fitted = fit.solve()
    torch.testing.assert_close(fitted.weights, wanted.weights, atol=4e-3, rtol=0)
    assert 0.99 < fit.r_squared(fitted) <= 1
    assert fit.r_squared(a_map(seed=9)) < fit.r_squared(fitted)


def test_the_mean_colour_explains_nothing() -> None:
    latents, fit = latents_of(1, 8, 8), PreviewFit()
    frames = rendered(a_map(), latents)
    fit.add(latents[:, 0], frames)
    mean = frames.float().mean((0, 1, 2)) / 255
    assert fit.r_squared(PreviewMap(torch.zeros(12, 3), mean)) == pytest.approx(0, abs=1e-4)


def test_an_empty_or_grey_fit_says_so() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PreviewFit().solve()
    fit = PreviewFit()
    fit.add(latents_of(2, 2), torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one colour"):
        fit.r_squared(fit.solve())


@pytest.mark.parametrize(("frames", "size"), [(0, 32), (6, 24)])
def test_frames_that_are_not_the_latents(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        PreviewFit().add(latents_of(4, 4), torch.zeros(frames, size, size, 3, dtype=torch.uint8))


@given(st.integers(0, 1000))
def test_text_and_back_is_the_same_map(seed: int) -> None:
    assert same(from_json(to_json(a_map(seed))), a_map(seed))


BROKEN = [
    ("{", "no JSON"),
    ("[]", "JSON object"),
    ("\xff", "no JSON"),
    ('{"format": "other"}', "mochi-serve-preview-1"),
    (json.dumps({"format": "mochi-serve-preview-1"}), "'weights'"),
    (json.dumps(json.loads(to_json(a_map())) | {"bias": [0, 1]}), r"'bias' must be .*\[3\], not \[2\]"),
    (json.dumps(json.loads(to_json(a_map())) | {"bias": [0, 1, "x"]}), "'bias'"),
    (json.dumps(json.loads(to_json(a_map())) | {"bias": [0, 1, float("nan")]}), "finite"),
    (json.dumps(json.loads(to_json(a_map())) | {"weights": [[1, 2], [3]]}), "'weights'"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_a_malformed_map_is_refused(text: str, said: str) -> None:
    with pytest.raises(PermanentError, match=said) as caught:
        from_json(text.encode("latin-1"))
    assert caught.value.code == "preview_malformed"


def test_the_included_model_has_a_map() -> None:
    preview = load_preview(SHAPES)
    assert preview is not None and preview.weights.shape == (12, 3)
    assert float(preview.bias.min()) > 0 and float(preview.bias.max()) < 0.5, "the ground of its clips is dark"


def test_a_folder_without_a_map_and_one_with_a_folder_in_its_place(tmp_path: Path) -> None:
    assert load_preview(tmp_path) is None
    (tmp_path / FILE).mkdir()
    with pytest.raises(PermanentError, match="cannot be read"):
        load_preview(tmp_path)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((5, 8, 8), (160, 160)), ((28, 60, 106), (160, 91)), ((2, 106, 60), (91, 160)), ((1, 4, 4), (160, 160))],
)
def test_the_picture_is_small_webp(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    data = preview_image(a_map(), latents_of(*shape))
    picture = Image.open(BytesIO(data))
    assert (picture.format, picture.size) == ("WEBP", size)
    assert len(data) < 8000


def test_the_picture_shows_the_middle_frame() -> None:
    preview = PreviewMap(torch.eye(12, 3), torch.zeros(3))
    latents = torch.zeros(12, 5, 8, 8)
    latents[0, 2] = 1.0
    latents[1, [0, 1, 3, 4]] = 1.0
    picture = Image.open(BytesIO(preview_image(preview, latents))).convert("RGB")
    red, green, _ = torch.tensor(list(picture.tobytes())).view(-1, 3).unbind(1)
    assert int(red.min()) > 240 and int(green.max()) < 15
    assert preview_image(preview, latents[:, 2:3]) == preview_image(preview, latents)


def test_wild_latents_still_make_a_picture() -> None:
    for value in (1e30, -1e30, float("nan"), float("inf")):
        assert Image.open(BytesIO(preview_image(a_map(), torch.full((12, 1, 8, 8), value)))).size == (160, 160)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_clean_sample_is_foretold_from_one_step(as_tensor: bool) -> None:
    """Along a straight path from noise to the sample, one step tells the end exactly."""
    noise, clean = latents_of(2, 4, 4, seed=1), latents_of(2, 4, 4, seed=2)
    sigmas = torch.tensor([0.1, 0.25]) if as_tensor else [0.1, 0.25]
    before, after = (noise + sigma * (clean - noise) for sigma in sigmas)
    torch.testing.assert_close(predicted_clean(before, after, *sigmas), clean, atol=1e-5, rtol=1e-5)


async def test_the_folders_map_comes_first(tmp_path: Path) -> None:
    store = MemoryStore()
    store.objects[KEY] = to_json(a_map(1)).encode()
    assert same(await find_preview(tmp_path, store, "abc"), a_map(1))
    shutil.copy(SHAPES / FILE, tmp_path)
    assert same(await find_preview(tmp_path, store, "abc"), load_preview(SHAPES))
    assert await find_preview(tmp_path / "elsewhere", store, "another") is None


async def test_damaged_maps_count_as_none(tmp_path: Path) -> None:
    store = MemoryStore()
    store.objects[KEY] = b"{"
    (tmp_path / FILE).write_text("{")
    assert await find_preview(tmp_path, store, "abc") is None
    store.objects[KEY] = to_json(a_map()).encode()
    assert same(await find_preview(tmp_path, store, "abc"), a_map())


def a_fit() -> PreviewFit:
    latents, fit = latents_of(1, 8, 8), PreviewFit()
    fit.add(latents[:, 0], rendered(a_map(), latents))
    return fit


async def test_a_map_is_kept_only_where_there_is_none(tmp_path: Path) -> None:
    store = MemoryStore()
    assert await keep_preview(tmp_path, store, "abc", a_fit())
    assert same(from_json(store.objects[KEY]), a_fit().solve())
    assert store.types == {KEY: "application/json"}
    assert await keep_preview(tmp_path, store, "abc", PreviewFit())
    assert store.written == [KEY]


async def test_a_damaged_map_in_the_store_is_replaced(tmp_path: Path) -> None:
    store = MemoryStore()
    store.objects[KEY] = b"{"
    assert await keep_preview(tmp_path, store, "abc", a_fit())
    assert same(from_json(store.objects[KEY]), a_fit().solve())


async def test_a_store_that_is_away_is_no_obstacle(tmp_path: Path) -> None:
    class Away(MemoryStore):
        async def get(self, key: str) -> bytes:
            raise StorageUnavailableError("away")

        async def put(self, key: str, data: bytes, content_type: str) -> None:
            raise StorageUnavailableError("away")

    assert await find_preview(tmp_path, Away(), "abc") is None
    assert not await keep_preview(tmp_path, Away(), "abc", a_fit())
