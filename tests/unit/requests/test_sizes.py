"""Sizes that clients have built in, and shapes alone, become the nearest; every other size is exact or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.clip import is_side
from deployments.settings import ModelSettings
from serve_app.config import load_settings
from serve_app.errors import InvalidRequestError
from serve_app.requests.body import Form
from serve_app.requests.schema import request_schema
from serve_app.requests.sizes import BUILT_IN_SIZES, Size, nearest_size, parse_size
from serve_app.requests.videos import CheckedRequest, VideoRequestChecker
from tests.support import ROOT

SHAPES = load_settings(str(ROOT / "configs" / "shapes.yaml"), {}).model
MOCHI = load_settings(str(ROOT / "configs" / "mochi-1-preview.yaml"), {}).model
BOUNDED = load_settings(str(ROOT / "configs" / "mochi-1-24gb.yaml"), {}).model
SIDES = st.floats(1, 10_000)


def check(model: ModelSettings, **fields: object) -> CheckedRequest:
    return VideoRequestChecker(model, request_schema(model, "Request"), None).check({"prompt": "a"} | fields)


def size_of(made: CheckedRequest) -> str:
    return f"{made.spec.width}x{made.spec.height}"


@pytest.mark.parametrize(
    ("asked", "small", "mochi"),
    [
        ("1280x720", "112x64", "848x480"),
        ("720x1280", "64x112", "480x848"),
        ("1792x1024", "112x64", "848x480"),
        ("1024x1792", "64x112", "480x848"),
        ("848x480", "112x64", "848x480"),
        ("480X848 ", "64x112", "480x848"),
        ("1024x1024", "112x112", "624x624"),
        ("auto", "96x96", "848x480"),
        ("720P", "112x112", "848x480"),
    ],
)
def test_sizes_that_clients_have_built_in(asked: str, small: str, mochi: str) -> None:
    for model, expected in ((SHAPES, small), (MOCHI, mochi)):
        made = check(model, size=asked)
        assert size_of(made) == expected
        written = asked.strip().lower()
        assert made.requested.size == (None if written == expected else written)


@pytest.mark.parametrize(
    ("asked", "made"),
    [("1280x720", "624x352"), ("720x1280", "352x624"), ("1024x1024", "480x480"), ("480x480", "480x480")],
)
def test_a_picture_may_be_bounded_beside_its_sides(asked: str, made: str) -> None:
    assert size_of(check(BOUNDED, size=asked, num_frames=7)) == made


@pytest.mark.parametrize("fields", [{"size": "640x640"}, {"width": 640, "height": 640}])
def test_a_picture_beyond_its_bound_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="409600 pixels a frame; at most 230400 are allowed") as caught:
        check(BOUNDED, num_frames=7, **fields)
    assert caught.value.param in fields


@pytest.mark.parametrize("size", ["1280x700", "1281x720", "160x160", "96x97", "16x16", "2000x2000"])
def test_other_sizes_are_refused_and_the_nearest_named(size: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"the nearest is [0-9]+x[0-9]+") as caught:
        check(SHAPES, size=size)
    assert caught.value.param == "size"


@pytest.mark.parametrize("size", ["128x32", "96x64", "32x32"])
def test_what_the_model_makes_is_made(size: str) -> None:
    made = check(SHAPES, size=size)
    assert (size_of(made), made.requested.size) == (size, None)


@pytest.mark.parametrize("wrap", [dict, Form])
def test_width_and_height_are_a_size(wrap: type[dict[str, object]]) -> None:
    fields = {"prompt": "a", "width": 1280, "height": 720}
    if wrap is Form:
        fields = {name: str(value) for name, value in fields.items()}
    checker = VideoRequestChecker(SHAPES, request_schema(SHAPES, "Request"), None)
    made = checker.check(wrap(fields))
    assert (size_of(made), made.requested.size) == ("112x64", "1280x720")


def test_width_alone_is_exact() -> None:
    with pytest.raises(InvalidRequestError, match="'width': got 1280"):
        check(SHAPES, width=1280)


@pytest.mark.parametrize(
    ("fields", "small", "mochi", "told"),
    [
        ({"aspect_ratio": "16:9"}, "112x64", "848x480", "16:9"),
        ({"aspect_ratio": "9:16"}, "64x112", "480x848", "9:16"),
        ({"aspect_ratio": "1:1"}, "96x96", "624x624", "1:1"),
        ({"resolution": "480p"}, "112x112", "848x480", "480p"),
        ({"resolution": "480P"}, "112x112", "848x480", "480p"),
        ({"resolution": "480p", "aspect_ratio": "9:16"}, "64x112", "480x848", "480p 9:16"),
        ({"size": "720P", "aspect_ratio": "16:9"}, "112x64", "848x480", "720p 16:9"),
        ({"size": "1280x720", "aspect_ratio": "16:9", "resolution": "720p"}, "112x64", "848x480", None),
        ({"size": "auto", "aspect_ratio": "16:9"}, "112x64", "848x480", "auto 16:9"),
    ],
)
def test_shapes(fields: dict[str, object], small: str, mochi: str, told: str | None) -> None:
    for model, expected in ((SHAPES, small), (MOCHI, mochi)):
        made = check(model, **fields)
        assert size_of(made) == expected
        assert told is None or made.requested.size == told


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "1280x720", "aspect_ratio": "1:1"}, "size"),
        ({"size": "1280x720", "resolution": "480p"}, "size"),
        ({"size": "720p", "resolution": "480p"}, "size"),
        ({"aspect_ratio": "16:9", "width": 96}, "aspect_ratio"),
        ({"resolution": "480p", "height": 96}, "resolution"),
    ],
)
def test_shapes_that_say_different_things(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(SHAPES, **fields)
    assert (caught.value.param, caught.value.code) == (param, "conflicting_parameters")


@pytest.mark.parametrize(
    ("name", "value"),
    [("aspect_ratio", "wide"), ("aspect_ratio", "0:9"), ("aspect_ratio", "16:0"), ("aspect_ratio", "")]
    + [("resolution", "p"), ("resolution", "0p"), ("resolution", "hd"), ("resolution", 480), ("resolution", "4k")],
)
def test_bad_shapes(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"'{name}'"):
        check(SHAPES, **{name: value})


@pytest.mark.parametrize(
    "fields",
    [{"size": "1280x720"}, {"size": "auto"}, {"aspect_ratio": "16:9"}, {"resolution": "480p"}]
    + [{"width": 1280, "height": 720}],
)
def test_a_server_that_fits_nothing_names_the_nearest(fields: dict[str, object]) -> None:
    exact = SHAPES.model_copy(update={"fit_sizes": False})
    with pytest.raises(InvalidRequestError) as caught:
        check(exact, **fields)
    assert caught.value.param in fields
    assert "width" in fields or "96x96" in caught.value.message or "112" in caught.value.message


@given(SIDES, SIDES, st.sampled_from([7, 25, 61]))
def test_the_nearest_is_always_one_that_the_model_makes(width: float, height: float, frames: int) -> None:
    size = nearest_size(width, height, SHAPES, frames)
    assert size is not None
    assert is_side(size.width) and is_side(size.height)
    assert 32 <= size.width <= 128 and 32 <= size.height <= 128
    assert size.pixels * frames <= SHAPES.max_pixels


@given(st.integers(2, 8), st.integers(2, 8))
def test_the_nearest_of_one_that_the_model_makes_is_itself(width: int, height: int) -> None:
    size = Size(16 * width, 16 * height)
    assert nearest_size(size.width, size.height, SHAPES, 7) == size


def test_no_size_fits_a_clip_that_is_too_long() -> None:
    assert nearest_size(96, 96, SHAPES, SHAPES.max_pixels) is None


def test_the_built_in_sizes_are_sizes() -> None:
    assert all(parse_size(size) for size in BUILT_IN_SIZES)


@pytest.mark.parametrize(
    ("fields", "size", "frames", "asked"),
    [
        ({"seconds": "4"}, "96x96", 49, "4"),
        ({"seconds": "4", "size": "1280x720"}, "112x64", 61, "4"),
        ({"seconds": 8, "size": "96x64"}, "96x64", 61, "8"),
        ({"seconds": 2.5, "size": "128x128"}, "128x128", 25, "2.5"),
        ({"seconds": "1"}, "96x96", 25, "1"),
    ],
)
def test_a_length_beyond_the_longest_is_the_longest(
    fields: dict[str, object], size: str, frames: int, asked: str
) -> None:
    made = check(SHAPES, **fields)
    assert (size_of(made), made.spec.num_frames, made.requested.seconds) == (size, frames, asked)


def test_a_length_is_never_cut_in_silence() -> None:
    with pytest.raises(InvalidRequestError, match="163 frames") as caught:
        check(MOCHI, seconds=8)
    assert caught.value.param == "seconds"
    with pytest.raises(InvalidRequestError, match="pixels"):
        check(SHAPES, num_frames=61, size="128x128")
