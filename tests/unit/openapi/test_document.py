"""The OpenAPI document: it is whole and valid, and answers are as it says."""

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.routing import Route

from serve_app.ingress.app import create_app
from tests.support import ROOT
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services

Document = dict[str, Any]
# The page for browsers and the document itself are no part of the API.
UNDESCRIBED = {"/", "/status", "/web/{path:path}", "/openapi.json"}
MAKERS = {
    "/v1/videos": ("prompt", "200"),
    "/generate": ("text", "202"),
    "/v1/videos/generations": ("prompt", "202"),
    "/v1/videos/{video_id}/remix": ("prompt", "200"),
    "/v1/videos/{video_id}/enhance": (None, "200"),
}
FILES = ("/v1/videos/{video_id}/content", "/download/{video_id}", "/v1/videos/generations/{video_id}/download")
SYNC = "/v1/videos/sync"
PROBES = ("/health", "/ready")
# Of requests that reach no described route, and the report of the probes, which is no envelope.
UNDESCRIBED_CODES = {
    ("400", "bad_request"),
    ("400", "cors_refused"),
    ("404", "unknown_url"),
    ("405", "method_not_allowed"),
    ("502", "bad_gateway"),
    ("503", "no_replica"),
    ("503", "not_ready"),
    ("504", "gateway_timeout"),
}


@pytest.fixture(scope="module")
def document() -> Document:
    return dict(create_app(FakeServices()).openapi())


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def nodes(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def validator(document: Document, schema: Document) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_it_is_valid(document: Document) -> None:
    validate(document)


async def test_it_is_served(client: httpx.AsyncClient, document: Document) -> None:
    answer = await client.get("/openapi.json")
    assert answer.json() == document


def test_it_has_every_route(document: Document) -> None:
    described = {(method.upper(), path) for method, path, _ in operations(document)}
    routes = (route for route in create_app(FakeServices()).routes if isinstance(route, Route))
    there = {(method, route.path) for route in routes for method in route.methods or ()}
    # HEAD is everywhere where GET is, and described where it says more.
    assert {(method, path) for method, path in described if method != "HEAD"} == {
        (method, path) for method, path in there if path not in UNDESCRIBED and method != "HEAD"
    }
    assert {("HEAD", path) for method, path in there if method == "GET"} <= there
    assert {path for method, path in described if method == "HEAD"} == set(FILES)


def test_no_reference_dangles(document: Document) -> None:
    for node in nodes(document):
        target: Any = document
        for part in node.get("$ref", "#").split("/")[1:]:
            target = target[part]
    used = json.dumps(document)
    for kind, entries in document["components"].items():
        for name in entries:
            assert kind == "securitySchemes" or f'"#/components/{kind}/{name}"' in used, f"{name} is never used"


def test_operations_are_named_described_and_tagged(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"create_video", "retrieve_video", "follow_video", "download_content", "generate", "health"} <= set(names)
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for _, _, operation in operations(document):
        assert set(operation["tags"]) <= tags
        assert operation["summary"] and operation["description"]
    assert document["servers"] == [{"url": "/", "description": "this server"}]


def test_every_parameter_is_described(document: Document) -> None:
    for _, path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), (path, parameter["name"])
            assert {"type": "null"} not in parameter["schema"].get("anyOf", ())


def test_every_status_is_named(document: Document) -> None:
    """A status by its own number, and none that no route answers with."""
    common = {"400", "401", "403", "429", "500", "503"}
    making = {"408", "409", "413", "415"}
    for method, path, operation in operations(document):
        expected = {"403", "500", "503"} if path in PROBES else set(common)
        if path in (*MAKERS, SYNC) and method == "post":
            expected |= making
        if path == SYNC:
            expected |= {"404", "504"}
        if "{video_id}" in path:
            expected.add("404")
        if path.endswith(("/cancel", "/content", "/download")) or path.startswith(("/cancel/", "/download/")):
            expected.add("409")
        if path in FILES and method == "get":
            expected.add("416")
        assert {status for status in operation["responses"] if status >= "400"} == expected, (method, path)
        for status, response in operation["responses"].items():
            assert response["description"] and HTTPStatus(int(status))


def test_every_error_is_the_envelope_with_examples(document: Document) -> None:
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status < "400" or method == "head":
                assert method != "head" or "content" not in response
                continue
            media = response["content"]["application/json"]
            if path not in PROBES or status != "503":
                assert media["schema"] == envelope
            for code, example in media.get("examples", {}).items():
                validator(document, envelope).validate(example["value"])
                assert (example["value"]["error"]["code"], example["value"]["error"]["type"]) == (code, kind(status))


def kind(status: str) -> str:
    """The type of an error with this status, as OpenAI has it."""
    if status == "429":
        return "rate_limit_error"
    return "server_error" if status >= "500" else "invalid_request_error"


def test_every_code_of_an_error_is_in_the_document_and_in_the_docs(document: Document) -> None:
    """With its status."""
    described = {
        (status, code)
        for _, _, operation in operations(document)
        for status, response in operation["responses"].items()
        if status >= "400"
        for code in response.get("content", {}).get("application/json", {}).get("examples", ())
    }
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    listed = {(status, code) for status, codes in rows for code in re.findall("`([a-z_]+)`", codes)}
    assert described | UNDESCRIBED_CODES == listed


@pytest.mark.parametrize("status", ["429", "503"])
def test_when_to_come_back(document: Document, status: str) -> None:
    for _, _, operation in operations(document):
        if status in operation["responses"]:
            assert "Retry-After" in operation["responses"][status]["headers"]


@pytest.mark.parametrize(("path", "prompt", "status"), [(path, *rest) for path, rest in MAKERS.items()])
def test_the_bodies(document: Document, path: str, prompt: str | None, status: str) -> None:
    operation = document["paths"][path]["post"]
    body = operation["requestBody"]
    assert body["required"] == (prompt is not None)
    assert set(body["content"]) == {"application/json", "multipart/form-data", "application/x-www-form-urlencoded"}
    media = body["content"]["application/json"]
    Draft202012Validator.check_schema(media["schema"])
    schema = validator(document, media["schema"])
    for example in media["examples"].values():
        schema.validate(example["value"])
    least = {} if prompt is None else {prompt: "a red circle"}
    assert schema.is_valid(least) and schema.is_valid(least | {"priority": "batch"})
    wrong: list[dict[str, Any]] = [{"other": 1}, {"priority": "urgent"}, {"webhook_url": 5}]
    wrong += [{prompt: "x" * 201}, {prompt: None}] if prompt else [{"num_inference_steps": 0}]
    for fields in wrong:
        assert not schema.is_valid(least | fields)
    assert prompt is None or not schema.is_valid({})
    assert "Idempotent-Replayed" in operation["responses"][status]["headers"]


def test_the_bounds_are_the_models(document: Document) -> None:
    schema = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body = Draft202012Validator(schema)
    assert body.is_valid({"prompt": "a", "width": 96, "seconds": "2", "exact": True})
    for wrong in ({"width": 65}, {"width": 144}, {"exact": 1}, {"fps": 0}, {"seed": -2}):
        assert not body.is_valid({"prompt": "a"} | wrong)


@pytest.mark.parametrize("path", MAKERS)
def test_the_headers_of_a_maker(document: Document, path: str) -> None:
    operation = document["paths"][path]["post"]
    headers = {p["name"]: p["schema"] for p in operation["parameters"] if p["in"] == "header"}
    assert set(headers) == {"OpenAI-Organization", "Idempotency-Key", "Cancel-After", "Prefer"}
    tenant = Draft202012Validator(headers["OpenAI-Organization"])
    assert tenant.is_valid("acme-1.x_y") and not tenant.is_valid("a b") and not tenant.is_valid("a" * 65)
    duration = Draft202012Validator(headers["Cancel-After"])
    assert all(map(duration.is_valid, ("90", "90s", "1h30m", "7.5"))) and not duration.is_valid("soon")
    body = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["cancel_after"]
    field = Draft202012Validator(body)
    assert all(map(field.is_valid, (90, 7.5, "90s", None)))
    assert not any(map(field.is_valid, (True, 4, 604_801, "soon", [])))


@pytest.mark.parametrize("path", ["/v1/videos", "/jobs"])
def test_the_filters(document: Document, path: str) -> None:
    names = [p["name"] for p in document["paths"][path]["get"]["parameters"] if p["in"] == "query"]
    assert names == ["limit", "after", "order", "status", "state", "tenant", "created_after", "created_before"]


@pytest.mark.parametrize("path", FILES)
def test_the_files(document: Document, path: str) -> None:
    operation = document["paths"][path]["get"]
    parameters = {p["name"]: p["schema"] for p in operation["parameters"]}
    assert parameters["variant"]["enum"] == ["video", "thumbnail", "spritesheet", "preview"]
    assert {"Range", "If-Range", "If-None-Match", "redirect"} <= set(parameters)
    assert {"200", "206", "304", "307"} <= set(operation["responses"])
    assert {"Content-Range", "ETag"} <= set(operation["responses"]["206"]["headers"])
    head = document["paths"][path]["head"]
    assert "If-None-Match" in {p["name"] for p in head["parameters"]}


def test_the_events(document: Document) -> None:
    operation = document["paths"]["/v1/videos/{video_id}/events"]["get"]
    assert "last-event-id" in {p["name"].lower() for p in operation["parameters"]}
    event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]["properties"]
    assert event["data"]["contentSchema"] == {"$ref": "#/components/schemas/VideoEvent"}
    kinds = document["components"]["schemas"]["VideoEvent"]["anyOf"]
    types = [document["components"]["schemas"][kind["$ref"].split("/")[-1]]["properties"]["type"] for kind in kinds]
    assert [kind["const"] for kind in types] == event["event"]["enum"]


def test_examples_are_as_their_schemas_say(document: Document) -> None:
    named = 0
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            validator(document, {"$ref": f"#/components/schemas/{name}"}).validate(example)
            named += 1
    assert named == 6


def test_keys_change_nothing_but_the_security(document: Document) -> None:
    services, _ = keyed_services("acme")
    keyed = json.loads(json.dumps(create_app(services).openapi()))
    for _, path, operation in operations(keyed):
        if path in PROBES:
            assert "security" not in operation
        else:
            assert operation["security"] == [{"ApiKey": []}]
            operation["security"].append({})
    assert keyed == document
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


async def test_answers_are_as_the_document_says(
    client: httpx.AsyncClient, services: FakeServices, document: Document
) -> None:
    made = (await client.post("/v1/videos", json={"prompt": "a red circle"})).json()
    services.memory.announce_all(max_tokens=80)
    services.memory.previews[made["id"]] = b"webp so far"
    with_preview = (await client.get(f"/v1/videos/{made['id']}?include=preview")).json()
    answers = {
        "Video": (await client.post(f"/v1/videos/{made['id']}/cancel")).json(),
        "VideoPage": (await client.get("/v1/videos")).json(),
        "VideoHistory": (await client.get(f"/v1/videos/{made['id']}/history")).json(),
        "ModelList": (await client.get("/v1/models")).json(),
        "ServerStatus": (await client.get("/v1/status")).json(),
        "HealthReport": (await client.get("/health")).json(),
        "ErrorEnvelope": (await client.get("/v1/videos/none")).json(),
        "DeletedVideo": (await client.delete(f"/v1/videos/{made['id']}")).json(),
    }
    for name, answer in [*answers.items(), ("Video", with_preview)]:
        schema = document["components"]["schemas"][name]
        validator(document, schema).validate(answer)
        # All that is described, and nothing else; a preview only where it was asked for.
        shown = answer.keys() | ({"preview"} if answer is answers["Video"] else set())
        assert shown == schema["properties"].keys()
    assert with_preview.keys() - answers["Video"].keys() == {"preview"}
