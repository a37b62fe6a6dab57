"""Fields that clients of other servers send: none costs a request but what asks for another video."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import load_settings
from serve_app.errors import InvalidRequestError
from serve_app.requests.body import Form, UploadedFile
from serve_app.requests.client_fields import CLIENT_FIELDS, EMPTY, MAX_DEPTH, ClientField, Effect
from serve_app.requests.schema import allowed_values, request_schema
from serve_app.requests.videos import CheckedRequest, VideoRequestChecker
from tests.support import ROOT

MODEL = load_settings(str(ROOT / "configs" / "shapes.yaml"), {}).model
CHECKER = VideoRequestChecker(MODEL, request_schema(MODEL, "Request"), None)
OWN = {"prompt": "a red circle", "seed": 1}
ALL = CHECKER.check(OWN)

IGNORED = [field.name for field in CLIENT_FIELDS.values() if field.effect is Effect.IGNORED]
ONLY = [field for field in CLIENT_FIELDS.values() if field.effect is Effect.ONLY]
REFUSED = [field.name for field in CLIENT_FIELDS.values() if field.effect is Effect.REFUSED]
UNPACKED = [field.name for field in CLIENT_FIELDS.values() if field.effect is Effect.UNPACKED]
EMPTY_VALUES = st.sampled_from(EMPTY)
VALUES = st.sampled_from(["x", 1, 2.5, True, False, ["a"], {"a": 1}])


def check(**fields: object) -> CheckedRequest:
    return CHECKER.check(OWN | fields)


def refused(fields: dict[str, object]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        CHECKER.check(fields)
    return caught.value


def test_no_field_is_ours_too() -> None:
    assert not set(CLIENT_FIELDS) & set(allowed_values(CHECKER.schema))


@pytest.mark.parametrize("name", IGNORED)
@given(value=VALUES)
def test_what_makes_no_difference_is_told(name: str, value: object) -> None:
    made = check(**{name: value})
    assert (made.spec, made.fingerprint, made.requested.ignored) == (ALL.spec, ALL.fingerprint, (name,))


@pytest.mark.parametrize("name", [*IGNORED, *REFUSED, *(field.name for field in ONLY)])
@given(value=EMPTY_VALUES)
def test_what_is_empty_is_nothing(name: str, value: object) -> None:
    made = check(**{name: value})
    assert (made.spec, made.requested.ignored) == (ALL.spec, ())


@pytest.mark.parametrize("field", ONLY, ids=lambda field: field.name)
def test_what_is_done_anyway_may_be_asked_for(field: ClientField) -> None:
    for value in (*field.only, *map(str, field.only), *(json.dumps(one).strip('"') for one in field.only)):
        assert check(**{field.name: value}).spec == ALL.spec
        assert CHECKER.check(Form(prompt="a red circle", seed="1", **{field.name: str(value)})).spec == ALL.spec


@pytest.mark.parametrize("name", UNPACKED)
@pytest.mark.parametrize("value", [None, "", {}, "{}", "null"])
def test_an_empty_object_says_nothing(name: str, value: object) -> None:
    assert check(**{name: value}).spec == ALL.spec


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", "4"),
        ("n", 0),
        ("n", True),
        ("response_format", "b64_json"),
        ("output_format", "webm"),
        ("stream", True),
        ("generate_audio", True),
        ("generate_audio", "True"),
        ("generate_sound", 1),
        ("enhance_prompt", True),
        ("enable_upscaling", "true"),
        ("loras", [{"name": "x"}]),
        ("loras", '[{"name": "x"}]'),
        ("input_reference", UploadedFile()),
        ("input_reference", {"image_url": "https://example.com/a.png"}),
        ("input_reference[image_url]", "https://example.com/a.png"),
        ("images", ["data:image/png;base64,AA"]),
        ("reference_url", "https://example.com/a.png"),
        ("characters", [{"id": "char_1"}]),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(name: str, value: object) -> None:
    error = refused(OWN | {name: value})
    base = name.partition("[")[0]
    assert (error.status, error.param, error.code) == (400, base, "unsupported_parameter")
    assert f"'{base}'" in error.message and "leave it out" in error.message
    inside = refused(OWN | {"extra_body": {name: value}})
    assert (inside.param, inside.code) == (base, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"duration": 2}, {"seconds": 2}),
        ({"duration": "1.5"}, {"seconds": 1.5}),
        ({"duration": 1, "seconds": "1"}, {"seconds": 1}),
        ({"callback_url": "https://example.com/hook"}, {"webhook_url": "https://example.com/hook"}),
        ({"extra_body": {"fps": 12, "num_frames": 13}}, {"fps": 12, "num_frames": 13}),
        ({"extra_json": '{"fps": 12}'}, {"fps": 12}),
        ({"extra_params": {"extra_body": {"fps": 12}}, "user": None}, {"fps": 12}),
        ({"extra_params[fps]": 12}, {"fps": 12}),
        ({"nvext": {"fps": 12, "negative_prompt": "blur"}}, {"fps": 12, "negative_prompt": "blur"}),
        ({"fps": 12, "extra_body": {"fps": 12}}, {"fps": 12}),
        ({"extra_body": {"duration": 2}}, {"seconds": 2}),
    ],
)
def test_other_words_for_our_fields(fields: dict[str, object], ours: dict[str, object]) -> None:
    made, expected = check(**fields), check(**ours)
    assert (made.spec, made.fingerprint, made.webhook_url) == (
        expected.spec,
        expected.fingerprint,
        expected.webhook_url,
    )
    form = Form({name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in fields.items()})
    assert CHECKER.check(Form(prompt="a red circle", seed="1", **form)).spec == expected.spec


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seconds": 1, "duration": 2}, "seconds"),
        ({"duration": 1, "num_frames": 25}, "seconds"),
        ({"fps": 12, "extra_body": {"fps": 24}}, "fps"),
        ({"extra_body": {"fps": 12}, "extra_json": {"fps": 24}}, "fps"),
        ({"fps": [[12]], "extra_body": {"fps": [[12]]}}, "fps"),
    ],
)
def test_two_words_that_say_different_things(fields: dict[str, object], param: str) -> None:
    error = refused(OWN | fields)
    assert (error.param, error.code) == (param, "conflicting_parameters")


@pytest.mark.parametrize("value", ["x", "[1]", "[]", 5, [], [1], "{", " ", True, "[" * 100_000])
def test_what_is_no_object_is_not_unpacked(value: object) -> None:
    error = refused(OWN | {"extra_params": value})
    assert (error.param, error.code) == ("extra_params", "invalid_value")


def test_objects_are_unpacked_so_deep() -> None:
    nested: dict[str, object] = {"fps": 12}
    for _ in range(MAX_DEPTH - 1):
        nested = {"extra_body": nested}
    assert check(**nested).spec.fps == 12
    assert refused(OWN | {"extra_body": nested}).param == "extra_body"


@pytest.mark.parametrize("seed", [-1, "-1", "", None])
def test_a_seed_that_is_none_is_drawn(seed: object) -> None:
    drawn = {CHECKER.check({"prompt": "a", "seed": seed}).spec.seed for _ in range(3)}
    assert len(drawn) == 3 and min(drawn) >= 0
    fingerprints = {CHECKER.check({"prompt": "a", "seed": each}).fingerprint for each in (seed, None)}
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("steps", "num_inference_steps"),
        ("num_step", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("negativ_prompt", "negative_prompt"),
        ("enable_tea_cache", "enable_teacache"),
        ("frames", "num_frames"),
    ],
)
def test_a_name_that_nobody_knows_gets_the_nearest(name: str, near: str) -> None:
    error = refused(OWN | {name: 1})
    assert (error.param, error.code) == (name, "unknown_parameter")
    assert f"Did you mean '{near}'?" in error.message


def test_a_name_far_from_all_gets_none() -> None:
    assert "Did you mean" not in refused(OWN | {"zzz": 1}).message


def test_the_documentation_has_the_table() -> None:
    rows = [f"| `{field.name}` | {field.sent_by} | {field.outcome} |" for field in CLIENT_FIELDS.values()]
    table = "\n".join(["| field | sent by | what happens |", "| --- | --- | --- |", *rows])
    assert table in Path(ROOT / "docs" / "api.md").read_text()
