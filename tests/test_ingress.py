import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from serve_app.jobs import Accepted, Submission
from tests.fakes import FakeServices, MemoryRegistry

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/openapi.json")).json())


def test_the_ingress_loads_no_model_code() -> None:
    heavy = ("torch", "diffusers", "transformers", "accelerate", "sqlalchemy.orm")
    code = f"import sys, serve_app.ingress; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class BrokenRegistry(MemoryRegistry):
    """Fails in a way that nobody foresaw."""

    async def submit(self, submission: Submission) -> Accepted:
        raise ZeroDivisionError("a secret detail")


async def test_an_unforeseen_error_is_an_envelope_without_details(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    object.__setattr__(services, "registry", BrokenRegistry())
    answer = await client.post("/v1/videos", json={"prompt": "a red circle"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v1/videos", "/generate"])
async def test_a_job_is_durable_before_the_answer(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    name = "prompt" if path == "/v1/videos" else "text"
    answer = await client.post(path, json={name: "a red circle", "seed": 3})
    job = services.registry.jobs[answer.json()["id"]]
    assert (job.spec.prompt, job.spec.seed) == ("a red circle", 3)


async def test_json_form_and_multipart_say_the_same(client: httpx.AsyncClient, services: FakeServices) -> None:
    fields = {"prompt": "a red circle", "width": 96, "seed": 1, "guidance_scale": 2.5, "exact": True}
    text = {name: str(value) for name, value in fields.items()} | {"exact": "true"}
    await client.post("/v1/videos", json=fields)
    await client.post("/v1/videos", data=text)
    await client.post("/v1/videos", files={name: (None, value) for name, value in text.items()})
    specs = [job.spec for job in services.registry.jobs.values()]
    assert len(specs) == 3
    assert len(set(specs)) == 1


def test_the_document_lists_every_route(document: dict[str, Any]) -> None:
    routes = {(method, path) for path, item in document["paths"].items() for method in item}
    assert routes == {
        ("post", "/v1/videos"),
        ("get", "/v1/videos"),
        ("get", "/v1/videos/{video_id}"),
        ("post", "/v1/videos/{video_id}/cancel"),
        ("get", "/v1/videos/{video_id}/history"),
        ("get", "/v1/videos/{video_id}/content"),
        ("get", "/v1/models"),
        ("post", "/generate"),
        ("get", "/status/{video_id}"),
        ("post", "/cancel/{video_id}"),
        ("get", "/download/{video_id}"),
        ("get", "/jobs"),
        ("get", "/health"),
    }


@pytest.mark.parametrize(("path", "prompt"), [("/v1/videos", "prompt"), ("/generate", "text")])
def test_the_document_describes_the_bodies(document: dict[str, Any], path: str, prompt: str) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "application/x-www-form-urlencoded"}
    schema = content["application/json"]["schema"]
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    right = {prompt: "a red circle", "width": 96, "seconds": "2", "exact": True, "priority": "batch"}
    assert validator.is_valid(right)
    wrong_values: tuple[dict[str, Any], ...] = ({"width": 65}, {"other": 1}, {prompt: "x" * 201}, {"exact": 1})
    wrong_values += ({"priority": "urgent"},)
    for wrong in ({}, *({prompt: "a"} | value for value in wrong_values)):
        assert not validator.is_valid(wrong)


def test_the_document_has_one_shape_of_errors(document: dict[str, Any]) -> None:
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["responses"]["4XX"]["content"]["application/json"]["schema"] == envelope
            assert "422" not in operation["responses"]


@pytest.mark.parametrize("path", ["/v1/videos", "/generate"])
def test_the_document_tells_the_headers(document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    headers = {p["name"]: p["schema"] for p in operation["parameters"] if p["in"] == "header"}
    assert set(headers) == {"OpenAI-Organization", "Idempotency-Key"}
    tenant = Draft202012Validator(headers["OpenAI-Organization"])
    assert tenant.is_valid("acme-1.x_y") and not tenant.is_valid("a b") and not tenant.is_valid("a" * 65)
    accepted = operation["responses"]["200" if path == "/v1/videos" else "202"]
    assert "Idempotent-Replayed" in accepted["headers"]
    assert "Retry-After" in operation["responses"]["429"]["headers"]


@pytest.mark.parametrize("path", ["/v1/videos", "/jobs"])
def test_the_document_tells_the_filters(document: dict[str, Any], path: str) -> None:
    names = [p["name"] for p in document["paths"][path]["get"]["parameters"]]
    filters = ["status", "state", "tenant", "created_after", "created_before"]
    assert names == ["limit", "after", "order", *filters]


def test_every_operation_has_an_id_of_its_own(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_the_document_tells_the_variants(document: dict[str, Any]) -> None:
    for path in ("/v1/videos/{video_id}/content", "/download/{video_id}"):
        parameters = document["paths"][path]["get"]["parameters"]
        (variant,) = (p["schema"] for p in parameters if p["name"] == "variant")
        assert variant["enum"] == ["video", "thumbnail", "preview"]


async def test_answers_are_as_the_document_says(
    client: httpx.AsyncClient, services: FakeServices, document: dict[str, Any]
) -> None:
    made = (await client.post("/v1/videos", json={"prompt": "a red circle"})).json()
    services.registry.announce_all(max_tokens=80)
    answers = {
        "Video": (await client.post(f"/v1/videos/{made['id']}/cancel")).json(),
        "VideoPage": (await client.get("/v1/videos")).json(),
        "VideoHistory": (await client.get(f"/v1/videos/{made['id']}/history")).json(),
        "ModelList": (await client.get("/v1/models")).json(),
        "HealthReport": (await client.get("/health")).json(),
        "ErrorEnvelope": (await client.get("/v1/videos/none")).json(),
    }
    for name, answer in answers.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate(answer)
