"""The read of one video without parameters, which goes past FastAPI: it answers as the declared route does."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from serve_app.access.tenants import AccessTable, ApiKey, Tenant, key_hash, key_hint, new_key
from serve_app.config import AccessSettings
from serve_app.feed.publisher import FeedPublisher
from serve_app.ingress.app import create_app
from serve_app.jobs import JobState, Tier
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.http.memory_http import fed_client

KEY, SLOW_KEY = new_key(), new_key()
UNKNOWN = "video_" + "0" * 32
PATHS = ("/v1/videos", "/status")
# Each makes FastAPI solve the parameters, and none of them changes the answer.
DECLARED = ({"params": {"wait": "0"}}, {"params": {"more": "x"}}, {"headers": {"Idempotency-Key": "k"}})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def made(client: httpx.AsyncClient, **headers: str) -> str:
    answer = await client.post("/v1/videos", json={"prompt": "a red circle"}, headers=headers)
    return str(answer.json()["id"])


def seen(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    return answer.status_code, dict(answer.headers), answer.content


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("declared", DECLARED)
async def test_the_answer_is_that_of_the_declared_route(
    client: httpx.AsyncClient, services: FakeServices, path: str, declared: dict[str, dict[str, str]]
) -> None:
    video = await made(client)
    waiting = await client.get(f"{path}/{video}")
    assert waiting.json()["state"] == "queued" and waiting.headers["openai-poll-after-ms"] == "250"
    assert seen(waiting) == seen(await client.get(f"{path}/{video}", **declared))  # type: ignore[arg-type]
    services.memory.complete(video)
    done = await client.get(f"{path}/{video}")
    assert done.json()["state"] == "completed" and "openai-poll-after-ms" not in done.headers
    assert seen(done) == seen(await client.get(f"{path}/{video}", **declared))  # type: ignore[arg-type]
    for unknown in (UNKNOWN, "x", "%00"):
        missing = await client.get(f"{path}/{unknown}")
        assert missing.status_code == 404
        assert seen(missing) == seen(await client.get(f"{path}/{unknown}", **declared))  # type: ignore[arg-type]


@pytest.fixture
async def keyed() -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that needs keys; the second tenant may send two requests a minute."""
    services = FakeServices(shapes_settings().model_copy(update={"access": AccessSettings(mode="keys")}))
    acme = Tenant("acme", Tier.STANDARD, "whsec_x", 0.0)
    slow = replace(acme, name="slow", requests_per_minute=2)
    of = {KEY: "acme", SLOW_KEY: "slow"}
    keys = [ApiKey(f"key_{name}", name, key_hash(key), key_hint(key), "", 0.0) for key, name in of.items()]
    services.memory.feed = FeedPublisher(
        access=AccessTable(1, {"acme": acme, "slow": slow}, {key.hash: key for key in keys})
    )
    async with fed_client(services) as client:
        yield client


async def test_it_needs_the_key_and_counts(keyed: httpx.AsyncClient) -> None:
    path = f"/v1/videos/{await made(keyed, **bearer(KEY))}"
    assert (await keyed.get(path, headers=bearer(KEY))).status_code == 200
    assert (await keyed.get(path)).json()["error"]["code"] == "missing_api_key"
    assert (await keyed.get(path, headers=bearer("ms-wrong"))).json()["error"]["code"] == "invalid_api_key"
    named = bearer(KEY) | {"OpenAI-Organization": "other"}
    assert (await keyed.get(path, headers=named)).json()["error"]["code"] == "mismatched_organization"
    foreign = await keyed.get(path, headers=bearer(SLOW_KEY))
    assert foreign.status_code == 404 and foreign.headers["x-ratelimit-remaining-requests"] == "1"
    assert [(await keyed.get(path, headers=bearer(SLOW_KEY))).status_code for _ in range(2)] == [404, 429]


def test_the_document_shows_the_declared_route() -> None:
    operation = create_app(FakeServices()).openapi()["paths"]["/v1/videos/{video_id}"]["get"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Video")
    assert {"video_id", "wait", "include"} <= {parameter["name"] for parameter in operation["parameters"]}


async def test_streams_and_long_polls_end_when_the_replica_leaves(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    path = f"/v1/videos/{await made(client)}"
    services.feed.begin_shutdown()
    stream = await client.get(f"{path}/events")
    assert b"event: state" in stream.content and b"event: done" not in stream.content
    waited = await client.get(path, params={"wait": "60"})
    assert waited.json()["state"] == JobState.QUEUED
