"""The LoRA of a request: its name, its scale, the object of other clients, and what is inherited."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.messages import LoraChoice, Stage, VideoSpec
from deployments.settings import LoraSettings
from serve_app.errors import InvalidRequestError
from serve_app.jobs import Job, JobState
from serve_app.openapi.views import to_model_list
from serve_app.requests.body import Form
from serve_app.requests.schema import request_schema
from serve_app.requests.videos import EnhanceRequestChecker, RemixRequestChecker
from tests.support.http.fakes import shapes_settings
from tests.support.request_checks import RequestChecks

PLAIN_MODEL = shapes_settings().model
LORAS = {
    "ink": LoraSettings(source="/loras/ink", description="ink drawings"),
    "drone.v2": LoraSettings(source="someone/drone"),
}
MODEL = PLAIN_MODEL.model_copy(update={"loras": LORAS})
REQUESTS = RequestChecks(MODEL)
checker, check, refused = REQUESTS.checker, REQUESTS.check, REQUESTS.refused


@pytest.mark.parametrize(("scale", "given"), [(1.0, {}), (0.5, {"lora_scale": 0.5}), (2.0, {"lora_scale": 2})])
def test_a_request_names_one_and_how_much_it_counts(scale: float, given: dict[str, Any]) -> None:
    spec = check(lora="ink", **given).spec
    assert (spec.lora, spec.lora_scale, spec.lora_choice) == ("ink", scale, LoraChoice("ink", scale))
    form = checker().check(Form(prompt="a red circle", seed="1", lora="ink", lora_scale=f"{scale:g}"))
    assert form.spec == spec


def test_without_one_it_is_the_same_request_as_on_a_server_that_has_none() -> None:
    assert (check().spec.lora, check().spec.lora_choice) == (None, None)
    assert check().fingerprint == check(PLAIN_MODEL).fingerprint
    assert "lora" not in str(check().spec.to_json())


def test_another_lora_or_scale_is_another_request_and_a_default_written_out_is_none() -> None:
    asked = [check(), check(lora="ink"), check(lora="drone.v2"), check(lora="ink", lora_scale=0.5)]
    assert len({each.fingerprint for each in asked}) == len({each.sent_fingerprint for each in asked}) == 4
    assert check(lora="ink", lora_scale=1).fingerprint == check(lora="ink").fingerprint


@pytest.mark.parametrize("empty", [None, "", "null", {}, "{}", []])
def test_what_is_empty_is_none(empty: object) -> None:
    assert check(lora=empty) == check() == check(PLAIN_MODEL, lora=empty)


@pytest.mark.parametrize("name", ["pencil", "INK", 1, True, ["ink"], "/loras/ink"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: object) -> None:
    error = refused(lora=name)
    assert (error.status, error.param, error.code) == (400, "lora", "invalid_value")
    assert "It must be the name of a LoRA: 'ink' or 'drone.v2'" in error.message


def test_a_server_without_loras_says_so() -> None:
    error = refused(PLAIN_MODEL, lora="ink")
    assert (error.param, error.code) == ("lora", "invalid_value")
    assert "this server has no LoRAs" in error.message


@pytest.mark.parametrize("scale", [-0.1, 2.1, "much", True, float("inf")])
def test_a_scale_out_of_bounds_is_refused(scale: object) -> None:
    error = refused(lora="ink", lora_scale=scale)
    assert error.param == "lora_scale" and "a number from 0 to 2" in error.message


def test_a_scale_of_no_lora_is_refused() -> None:
    error = refused(lora_scale=0.5)
    assert error.param == "lora_scale" and "name one in 'lora'" in error.message


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"lora": {"name": "ink", "scale": 0.5}}, LoraChoice("ink", 0.5)),
        ({"lora": {"name": "ink"}}, LoraChoice("ink", 1.0)),
        ({"lora": '{"name": "ink", "scale": 0.5}'}, LoraChoice("ink", 0.5)),
        ({"lora": {"name": "ink", "scale": 0.5}, "lora_scale": 0.5}, LoraChoice("ink", 0.5)),
        ({"lora": {"name": "ink", "path": ""}, "lora_scale": 0.5}, LoraChoice("ink", 0.5)),
        ({"extra_body": {"lora": {"name": "ink"}}}, LoraChoice("ink", 1.0)),
    ],
)
def test_the_object_of_other_clients_says_the_same(fields: dict[str, Any], choice: LoraChoice) -> None:
    assert check(**fields).spec.lora_choice == choice
    assert check(**fields).fingerprint == check(lora=choice.name, lora_scale=choice.scale).fingerprint


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"lora": {"name": "ink", "path": "/etc"}}, "lora", "LoRAs are loaded by this server's settings"),
        ({"lora": {"name": "pencil"}}, "lora", "'ink' or 'drone.v2'"),
        ({"lora": {"name": "ink", "scale": 0.5}, "lora_scale": 1}, "lora", "lora_scale"),
        ({"lora": {"name": "ink", "scale": 3}}, "lora_scale", "a number from 0 to 2"),
        ({"lora": '{"name": "ink"'}, "lora", "'ink' or 'drone.v2'"),
    ],
)
def test_an_object_that_asks_for_something_else_is_refused(fields: dict[str, Any], param: str, said: str) -> None:
    error = refused(**fields)
    assert error.param == param and said in error.message


def source(lora: str | None, scale: float = 1.0) -> Job:
    spec = VideoSpec("a red circle", "", 64, 64, 25, 24, 5, 1.5, 1, lora=lora, lora_scale=scale)
    return Job("video_1", "mochi-1", spec, JobState.COMPLETED, Stage.DECODING, 1, 0.0)


@pytest.mark.parametrize(
    ("asked", "of", "lora", "scale"),
    [
        ({}, source("ink", 0.5), "ink", 0.5),
        ({"lora": "ink"}, source("ink", 0.5), "ink", 0.5),
        ({"lora": "drone.v2"}, source("ink", 0.5), "drone.v2", 1.0),
        ({"lora_scale": 2.0}, source("ink", 0.5), "ink", 2.0),
        ({"lora_scale": 0.0}, source("ink", 0.5), "ink", 0.0),
        ({"lora_scale": 0.0}, source("gone"), "gone", 0.0),
        ({"lora": "ink"}, source("gone"), "ink", 1.0),
        ({"lora": "ink", "lora_scale": 0.3}, source(None), "ink", 0.3),
        ({}, source(None), None, 1.0),
    ],
)
def test_what_is_made_from_a_video_has_its_lora_unless_it_asks_for_another(
    asked: dict[str, object], of: Job, lora: str | None, scale: float
) -> None:
    remix = RemixRequestChecker(checker()).check({"prompt": "a red circle", **asked}, of).spec
    assert remix == replace(of.video, lora=lora, lora_scale=scale)
    assert EnhanceRequestChecker(checker()).check(asked, of).spec.lora == lora


def test_a_lora_that_is_not_served_any_more_is_told() -> None:
    for model, said in ((MODEL, "name another ('ink', 'drone.v2'), or ask for"), (PLAIN_MODEL, "any more: ask for")):
        with pytest.raises(InvalidRequestError, match='made with the LoRA "gone", which is not served') as caught:
            RemixRequestChecker(checker(model)).check({"prompt": "a red circle"}, source("gone"))
        assert caught.value.param == "lora" and said in caught.value.message


def test_the_model_tells_what_there_is() -> None:
    (served,) = to_model_list(MODEL, None).model_dump(mode="json")["data"]
    assert served["loras"] == [
        {"name": "ink", "description": "ink drawings"},
        {"name": "drone.v2", "description": ""},
    ]


def test_the_document_lists_the_names() -> None:
    described = request_schema(MODEL, "Request").model_json_schema()["properties"]["lora"]
    assert described["anyOf"] == [{"enum": ["ink", "drone.v2", ""]}, {"type": "null"}]


async def test_the_answer_tells_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/videos", json={"prompt": "a red circle"})
    assert (answer.json()["lora"], answer.json()["lora_scale"]) == (None, None)
    error = (await client.post("/v1/videos", json={"prompt": "a red circle", "lora": "ink"})).json()["error"]
    assert error["param"] == "lora" and "this server has no LoRAs" in error["message"]
