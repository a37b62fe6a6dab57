"""Drafts under load, as clients see them."""

from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.config import SchedulingSettings
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.http.memory_http import fed_client

BODY = {"prompt": "a red circle", "quality": "auto", "seed": 7}


@pytest.fixture
def services() -> FakeServices:
    """A server that makes drafts under load."""
    scheduling = SchedulingSettings(draft_when_wait_over_s=60)
    return FakeServices(shapes_settings().model_copy(update={"scheduling": scheduling}))


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    async with fed_client(services) as client:
        yield client


async def test_the_answer_tells_what_is_made_and_why(client: httpx.AsyncClient, services: FakeServices) -> None:
    soon = (await client.post("/v1/videos", json=BODY)).json()
    assert (soon["quality"], soon["requested_quality"], soon["draft_reason"]) == ("exact", "auto", None)
    services.memory.wait_s = 312.42
    late = (await client.post("/v1/videos", json=BODY)).json()
    assert (late["quality"], late["requested_quality"], late["seed"]) == ("draft", "auto", 7)
    assert late["num_inference_steps"] < soon["num_inference_steps"]
    full = {name: soon[name] for name in ("quality", "num_inference_steps", "guidance_scale")}
    assert late["draft_reason"] == {"wait_s": 312.4, "limit_s": 60.0, **full}
    assert (await client.get(f"/v1/videos/{late['id']}")).json() == late
    enhanced = (await client.post(f"/v1/videos/{late['id']}/enhance")).json()
    own = ("id", "created_at", "enhanced_from_video_id", "requested_quality")
    assert {k: v for k, v in enhanced.items() if k not in own} == {k: v for k, v in soon.items() if k not in own}


@pytest.mark.parametrize("path", ["/generate", "/v1/videos/generations"])
async def test_every_route_makes_them(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.memory.wait_s = 61.0
    body = {"text" if path == "/generate" else "prompt": "a red circle", "quality": "auto"}
    assert (await client.post(path, json=body)).json()["quality"] == "draft"
    assert (await client.post(path, json=body | {"num_inference_steps": 9})).json()["quality"] == "exact"


async def test_a_repeated_request_is_the_same_whatever_waits_by_then(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    soon = await client.post("/v1/videos", json=BODY, headers={"Idempotency-Key": "soon"})
    services.memory.wait_s = 61.0
    late = await client.post("/v1/videos", json=BODY, headers={"Idempotency-Key": "late"})
    services.memory.wait_s = 0.0
    for key, first in (("soon", soon), ("late", late)):
        again = await client.post("/v1/videos", json=BODY, headers={"Idempotency-Key": key})
        assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
        other = {name: value for name, value in BODY.items() if name != "quality"}
        refused = await client.post("/v1/videos", json=other, headers={"Idempotency-Key": key})
        assert refused.status_code == 409


async def test_the_model_tells_the_limit(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert model["draft_when_wait_over_s"] == 60.0


async def test_the_document_has_it(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert {"requested_quality", "draft_reason"} <= schemas["Video"]["properties"].keys()
    assert {"wait_s", "limit_s"} <= schemas["VideoDraftReason"]["properties"].keys()
