import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.clip import nearest_length
from deployments.messages import VideoSpec
from serve_app.errors import InvalidRequestError
from serve_app.jobs import Tier
from serve_app.prompts.tokens import load_token_counter
from serve_app.requests.body import Form, UploadedFile
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import DRAWN_SEEDS, VideoRequestChecker
from tests.support.http.fakes import shapes_settings

MODEL = shapes_settings().model
CHECKER = VideoRequestChecker(MODEL, request_schema(MODEL, "Request"), load_token_counter(MODEL.source))

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NAMES = st.sampled_from([*CHECKER.schema.model_fields, "input_reference"]) | st.text(max_size=10)


def spec(**fields: object) -> VideoSpec:
    return CHECKER.check({"prompt": "a red circle", **fields}).spec


def refused(**fields: object) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        spec(**fields)
    return caught.value


def test_defaults_are_the_models() -> None:
    made = spec()
    assert (made.width, made.height, made.num_frames, made.fps) == (96, 96, 37, 24)
    assert (made.num_inference_steps, made.guidance_scale, made.negative_prompt) == (8, 3.0, "")
    assert made.exact is False


def test_a_seed_is_drawn_anew_and_fits_a_double() -> None:
    seeds = {spec().seed for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < DRAWN_SEEDS for seed in seeds)


def test_own_fields_are_taken_as_given() -> None:
    given_fields: dict[str, Any] = {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "width": 128,
        "height": 32,
        "num_frames": 7,
        "fps": 12,
        "num_inference_steps": 2,
        "guidance_scale": 1,
        "seed": 2**63 - 1,
        "exact": True,
    }
    assert CHECKER.check(given_fields).spec == VideoSpec(**{**given_fields, "guidance_scale": 1.0})


def test_null_is_not_given() -> None:
    assert spec(seed=None, size=None, width=None, negative_prompt=None).width == 96
    assert refused(prompt=None).code == "missing_required_parameter"


@pytest.mark.parametrize("seconds", ["2", 2, 2.0, "2.0", "2e0"])
def test_seconds_as_text_and_as_number(seconds: object) -> None:
    assert spec(seconds=seconds).num_frames == 49


@pytest.mark.parametrize(
    ("seconds", "fps", "minimum", "frames"),
    [(1.0, 24, 7, 25), (0.01, 24, 7, 7), (4.0, 30, 7, 121), (1.0, 22, 7, 25), (1.0, 21, 7, 19), (1e-300, 1, 1, 1)],
)
def test_nearest_number_of_frames(seconds: float, fps: int, minimum: int, frames: int) -> None:
    assert max(minimum, nearest_length(seconds * fps)) == frames


@given(st.floats(0.001, 1000), st.integers(1, 60))
def test_no_other_number_of_frames_is_nearer(seconds: float, fps: int) -> None:
    frames = nearest_length(seconds * fps)
    assert frames % 6 == 1
    assert frames == 1 or abs(frames - seconds * fps) <= 3 + 1e-9 * seconds * fps


def test_too_many_seconds_name_the_most() -> None:
    exact = MODEL.model_copy(update={"fit_seconds": False})
    with pytest.raises(InvalidRequestError) as caught:
        VideoRequestChecker(exact, request_schema(exact, "Request"), None).check({"prompt": "a", "seconds": "3"})
    error = caught.value
    assert error.param == "seconds"
    assert "73 frames" in error.message
    assert "61 frames (2.54 seconds at 24 fps)" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"seconds": 1, "num_frames": 25}, "seconds"), ({"size": "64x64", "width": 64}, "size")],
)
def test_two_fields_for_one_thing(fields: dict[str, object], param: str) -> None:
    error = refused(**fields)
    assert (error.param, error.code) == (param, "conflicting_parameters")


@pytest.mark.parametrize("size", ["64x65", "16x64", "64x144", "64*64", "64x", "٦٤x64", "0x64", "64x64\n", 64, [64, 64]])
def test_bad_sizes(size: object) -> None:
    error = refused(size=size)
    assert error.param == "size"
    assert "width from 32 to 128" in error.message


def test_a_size_is_width_times_height() -> None:
    made = spec(size="128x32")
    assert (made.width, made.height) == (128, 32)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("width", 65, "multiple of 16"),
        ("width", 16, "from 32 to 128"),
        ("width", True, "got true"),
        ("width", "64", 'got "64"'),
        ("width", 64.0, "got 64.0"),
        ("height", 10**400, "401 digits"),
        ("num_frames", 26, "the next one below is 25"),
        ("num_frames", 67, "from 7 to 61"),
        ("fps", 0, "from 1 to 60"),
        ("num_inference_steps", 1, "from 2 to 200"),
        ("num_inference_steps", 201, "from 2 to 200"),
        ("guidance_scale", 0.99, "from 1 to 20"),
        ("guidance_scale", 20.01, "from 1 to 20"),
        ("guidance_scale", math.nan, "got NaN"),
        ("guidance_scale", math.inf, "got Infinity"),
        ("guidance_scale", 10**400, "from 1 to 20"),
        ("seed", -2, "from 0"),
        ("seed", 2**63, "from 0"),
        ("seed", 1.5, "got 1.5"),
        ("seconds", "four", 'got "four"'),
        ("seconds", 0, "above 0"),
        ("seconds", -1, "above 0"),
        ("seconds", math.nan, "above 0"),
        ("seconds", 10**400, "above 0"),
        ("seconds", True, "got true"),
        ("prompt", "", "not blank"),
        ("prompt", " \n\t", "not blank"),
        ("prompt", "x" * 201, "201 characters"),
        ("prompt", "a\0b", "U+0000 at position 1"),
        ("prompt", "\x1b[31m", "U+001B at position 0"),
        ("prompt", "\ud800", 'got "\\ud800"'),
        ("prompt", ["a"], "got a list"),
        ("prompt", {"a": 1}, "got an object"),
        ("prompt", 5, "got 5"),
        ("negative_prompt", "a\x7f", "U+007F at position 1"),
        ("negative_prompt", 0, "got 0"),
        ("exact", 1, "got 1"),
        ("exact", "true", 'got "true"'),
        ("exact", "yes", "true or false"),
        ("priority", "urgent", "interactive, standard or batch"),
        ("priority", "Batch", 'got "Batch"'),
        ("priority", 1, "got 1"),
        ("priority", "", "interactive, standard or batch"),
    ],
)
def test_a_bad_value_is_named_quoted_and_put_right(name: str, value: object, part: str) -> None:
    error = refused(**{name: value})
    assert (error.status, error.param, error.code) == (400, name, "invalid_value")
    assert f"'{name}'" in error.message
    assert part in error.message
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "text",
    ["\u200b", "\u200b \u2060\n", "\ufeff", "\u00a0\u3000", "\u00ad", "\u3164", "\u115f", "\u2800", "\ufe0f", "\u202e"]
    + ["\u180e", "\U000e0041", "\U000e0100"],
)
def test_a_prompt_of_invisible_characters_is_blank(text: str) -> None:
    error = refused(prompt=text)
    assert (error.param, error.code) == ("prompt", "invalid_value")
    assert "(blank)" in error.message


@pytest.mark.parametrize("text", ["👩\u200d🚀", "☃", "!", "é", "圆", "a red\n\tcircle"])
def test_what_is_drawn_is_kept(text: str) -> None:
    assert spec(prompt=text).prompt == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("\u200ba", "a"), ("\u0627\u200f", "\u0627"), ("a red\r\n\tcircle", "a red\n\tcircle"), (" a ", "a")],
)
def test_prompts_are_cleaned(text: str, cleaned: str) -> None:
    made = spec(prompt=text, negative_prompt=text)
    assert (made.prompt, made.negative_prompt) == (cleaned, cleaned)


def test_too_many_pixels() -> None:
    error = refused(size="128x128", num_frames=61)
    assert error.param == "size"
    assert "999424 pixels" in error.message
    assert "500000" in error.message


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_too_many_tokens(name: str) -> None:
    error = refused(**{name: "x1 " * 40})
    assert (error.param, error.code) == (name, "prompt_too_long")


def test_an_unknown_model_names_the_one_served() -> None:
    error = refused(model="veo-3")
    assert (error.status, error.param, error.code) == (400, "model", "model_not_found")
    assert "'mochi-1'" in error.message
    assert spec(model="mochi-1")


@pytest.mark.parametrize("name", ["sora-2", "sora-2-pro"])
def test_names_that_clients_have_built_in_mean_the_model(name: str) -> None:
    assert fingerprint(model=name) == fingerprint()


def test_an_unknown_field_lists_the_known() -> None:
    error = refused(num_step=3)
    assert (error.param, error.code) == ("num_step", "unknown_parameter")
    assert all(name in error.message for name in CHECKER.schema.model_fields)


@pytest.mark.parametrize("name", ["input_reference", "input_reference[image_url]"])
def test_reference_images_are_unsupported(name: str) -> None:
    error = refused(**{name: UploadedFile()})
    assert (error.param, error.code) == ("input_reference", "unsupported_parameter")


def test_numbers_of_a_form_are_read_from_text() -> None:
    form = Form(prompt="5", width="128", guidance_scale="2.5", seed="9007199254740993", seconds="1")
    made = CHECKER.check(form).spec
    assert (made.prompt, made.width, made.guidance_scale, made.seed) == ("5", 128, 2.5, 9007199254740993)
    assert made.num_frames == 25


@pytest.mark.parametrize("text", ["", " 64", "6_4", "64.0", "0x40", "٦٤", "nan", "9" * 5000, "true"])
def test_what_is_no_number_in_a_form(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="'width'"):
        CHECKER.check(Form(prompt="a", width=text))


@pytest.mark.parametrize(("text", "exact"), [("true", True), ("false", False)])
def test_exact_in_a_form(text: str, exact: bool) -> None:
    assert CHECKER.check(Form(prompt="a", exact=text)).spec.exact is exact


@pytest.mark.parametrize("text", ["", "True", "1", "yes", " true"])
def test_what_is_neither_true_nor_false_in_a_form(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="'exact'.* true or false"):
        CHECKER.check(Form(prompt="a", exact=text))


def test_true_is_a_word_like_others_in_a_prompt() -> None:
    assert CHECKER.check(Form(prompt="true")).spec.prompt == "true"


@pytest.mark.parametrize("tier", Tier)
def test_priorities_are_the_tiers(tier: Tier) -> None:
    for fields in ({"prompt": "a", "priority": tier.value}, Form(prompt="a", priority=tier.value)):
        assert CHECKER.check(fields).tier is tier


def test_without_a_priority_the_tenant_decides() -> None:
    assert CHECKER.check({"prompt": "a"}).tier is None


def fingerprint(**fields: object) -> str:
    return CHECKER.check({"prompt": "a red circle", **fields}).fingerprint


def test_a_fingerprint_is_a_sha256_that_stays_the_same() -> None:
    # Kept with the jobs: after an upgrade of the server, the same request under the same key must still be the same.
    assert (
        fingerprint(seed=1, num_inference_steps=16)
        == "ed1b272f69bc87426cd031e031f85467fba479d63a9f000807a65211b0319cab"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " a red circle\u200b"},
        {"width": 96, "height": 96},
        {"size": "96x96"},
        {"num_frames": 37},
        {"seconds": 1.5},
        {"seconds": "1.50"},
        {"fps": 24, "num_inference_steps": 8, "guidance_scale": 3, "negative_prompt": "", "exact": False},
        {"model": "mochi-1", "priority": "standard", "seed": None},
    ],
)
def test_requests_that_mean_the_same_have_one_fingerprint(fields: dict[str, object]) -> None:
    assert fingerprint(**fields) == fingerprint()


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a red circles"},
        {"negative_prompt": "blue"},
        {"width": 80},
        {"height": 80},
        {"num_frames": 31},
        {"fps": 25},
        {"num_inference_steps": 21},
        {"guidance_scale": 3.1},
        {"seed": 0},
        {"exact": True},
        {"priority": "batch"},
        {"webhook_url": "https://example.com/hook"},
    ],
)
def test_every_field_is_in_the_fingerprint(fields: dict[str, object]) -> None:
    assert fingerprint(**fields) != fingerprint()


def test_the_model_is_in_the_fingerprint() -> None:
    renamed = MODEL.model_copy(update={"name": "mochi-2"})
    other = VideoRequestChecker(renamed, request_schema(renamed, "Request"), None)
    assert other.check({"prompt": "a red circle"}).fingerprint != fingerprint()


def test_a_form_and_the_short_route_have_the_fingerprint_of_json() -> None:
    short = VideoRequestChecker(MODEL, request_schema(MODEL, "Short", "text"), None)
    form = Form(prompt="a red circle", seed="7", guidance_scale="2.50", exact="true", priority="batch")
    rest = {"seed": 7, "guidance_scale": 2.5, "exact": True, "priority": "batch"}
    assert CHECKER.check(form).fingerprint == fingerprint(**rest)
    assert short.check({"text": "a red circle", **rest}).fingerprint == fingerprint(**rest)


def test_a_file_in_place_of_text() -> None:
    with pytest.raises(InvalidRequestError, match="got a file"):
        CHECKER.check(Form(prompt=UploadedFile()))


def test_the_short_route_calls_the_prompt_text() -> None:
    short = VideoRequestChecker(MODEL, request_schema(MODEL, "Short", "text"), CHECKER.count_tokens)
    assert short.check({"text": "a red circle"}).spec.prompt == "a red circle"
    for fields, param in (({}, "text"), ({"text": "x1 " * 40}, "text"), ({"prompt": "x"}, "prompt")):
        with pytest.raises(InvalidRequestError) as caught:
            short.check(fields)
        assert caught.value.param == param


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.booleans())
def test_any_fields_make_a_spec_within_the_bounds_or_a_refusal(fields: dict[str, object], as_form: bool) -> None:
    fields = {"prompt": "a", **fields}
    try:
        made = CHECKER.check(Form(fields) if as_form else fields).spec
    except InvalidRequestError as error:
        assert error.message.encode("utf-8")
        return
    assert made.width % 16 == made.height % 16 == 0
    assert made.num_frames % 6 == 1
    assert made.width * made.height * made.num_frames <= MODEL.max_pixels
    assert 0 <= made.seed < 2**63
