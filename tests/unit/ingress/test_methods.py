"""HEAD and OPTIONS, which proxies, monitors and browsers send to any path."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from serve_app.config import AccessSettings
from serve_app.ingress.app import create_app
from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.http.memory_http import fed_client

UNKNOWN = "video_" + "0" * 32
STUDIO = "https://studio.example.com"


def paths(method: str) -> Iterator[str]:
    """Of all routes that take this method."""
    routes = (route for route in create_app(FakeServices()).routes if isinstance(route, Route))
    yield from sorted({route.path for route in routes if method in (route.methods or ())})


@pytest.fixture
async def video_id(client: httpx.AsyncClient, services: FakeServices) -> str:
    """Of a completed video with all its files."""
    made = str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])
    services.memory.complete(made)
    for variant in ("video", "thumbnail", "spritesheet"):
        services.add_file(made, variant, variant.encode())
    return made


def url_of(path: str, video_id: str) -> str:
    return path.replace("{video_id}", video_id).replace("{character_id}", "x").replace("{path:path}", "app.js")


@pytest.mark.parametrize("path", paths("GET"))
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, video_id: str, path: str) -> None:
    url = url_of(path, video_id)
    get, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.headers, head.content) == (get.status_code, get.headers, b"")
    assert get.content


@pytest.mark.parametrize("path", [path for path in paths("GET") if "{video_id}" in path])
async def test_head_of_nothing(client: httpx.AsyncClient, path: str) -> None:
    get, head = await client.get(url_of(path, UNKNOWN)), await client.head(url_of(path, UNKNOWN))
    assert (head.status_code, head.headers, head.content) == (404, get.headers, b"")


async def test_head_neither_streams_nor_waits(client: httpx.AsyncClient, services: FakeServices) -> None:
    made = (await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    async with asyncio.timeout(300):
        events = await client.head(f"/v1/videos/{made}/events")
        waited = [await client.head(f"{path}/{made}?wait=60") for path in ("/v1/videos", "/status")]
    assert (events.status_code, events.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert events.headers["x-accel-buffering"] == "no" and "content-length" not in events.headers
    assert [(answer.status_code, answer.content) for answer in waited] == 2 * [(200, b"")]
    assert services.memory.jobs[made].state is JobState.QUEUED and not services.feed.watched_jobs


@pytest.mark.parametrize("path", sorted({*paths("GET"), *paths("POST"), *paths("DELETE")}))
async def test_options_tell_what_a_path_takes(client: httpx.AsyncClient, video_id: str, path: str) -> None:
    answer = await client.options(url_of(path, video_id))
    assert (answer.status_code, answer.content) == (204, b"")
    taken = {method for method in ("GET", "HEAD", "POST", "DELETE") if path in paths(method)}
    # A word in the place of an id may be a path of its own, and the other way round.
    assert {"OPTIONS", *taken} <= set(answer.headers["allow"].split(", "))
    assert ("HEAD" in answer.headers["allow"]) == ("GET" in answer.headers["allow"])


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/videos/", "*"])
async def test_options_of_no_path(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.options(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


async def test_options_of_a_browser_are_as_cors_has_them() -> None:
    access = AccessSettings(cors_origins=(STUDIO,))
    preflight = {"Origin": STUDIO, "Access-Control-Request-Method": "POST"}
    for settings in (shapes_settings(), shapes_settings().model_copy(update={"access": access})):
        async with fed_client(FakeServices(settings)) as client:
            asked = await client.options("/v1/videos", headers=preflight)
            plain = await client.options("/v1/videos", headers={"Origin": STUDIO})
        allowed = STUDIO if settings.access.cors_origins else None
        # Without CORS in the settings a page learns nothing: no header names its origin.
        assert [answer.headers.get("access-control-allow-origin") for answer in (asked, plain)] == 2 * [allowed]
        assert ("access-control-allow-methods" in asked.headers) == (allowed is not None)
        assert (asked.status_code, plain.status_code) == (204 if allowed is None else 200, 204)
