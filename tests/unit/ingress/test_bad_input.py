"""No input may give a 5xx, and every error is OpenAI's envelope."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.messages import Stage, VideoSpec
from serve_app.ingress.app import create_app
from serve_app.jobs import Job, JobState, first_move
from tests.support.examples import examples
from tests.support.http.fakes import FakeServices

TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
NUMBERS = st.integers() | st.floats() | st.integers(10**300, 10**301)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["prompt", "text", "model", "size", "seconds", "width", "height", "num_frames", "fps", "num_inference_steps"]
    + ["guidance_scale", "seed", "exact", "negative_prompt", "input_reference", "priority", "webhook_url"]
)
BODIES = st.dictionaries(FIELDS | TEXT, JSON_VALUES, max_size=6) | JSON_VALUES
VIDEO = "video_" + "1" * 32
POSTS = st.sampled_from(
    ["/v1/videos", "/generate", f"/v1/videos/{VIDEO}/remix", f"/v1/videos/{VIDEO}/enhance", "/v1/videos/edits"]
)
GETS = st.sampled_from(
    ["/v1/videos/{}", "/v1/videos/{}/content", "/status/{}", "/download/{}", "/{}", "/v1/{}"]
    + ["/v1/videos/{}/history", "/v1/videos/{}/events", "/v1/videos/characters/{}", "/web/{}"]
)

HEADERS = ["OpenAI-Organization", "Idempotency-Key", "Last-Event-ID", "Authorization", "Host", "Origin"]


@pytest.fixture
def services() -> FakeServices:
    """With one video, `VIDEO`, that can be remixed and enhanced."""
    services = FakeServices()
    spec = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 7)
    job = Job(VIDEO, "mochi-1", spec, JobState.QUEUED, Stage.ENCODING, 1, 1.0, last_move=first_move(1.0))
    services.memory.jobs[VIDEO], services.memory.moves[VIDEO] = job, [first_move(1.0)]
    return services


many = settings(max_examples=examples(2), suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500
    if answer.status_code < 400:
        return
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert isinstance(body["error"]["code"], str)
    assert 0 < len(body["error"]["message"]) < 1500


@many
@given(path=POSTS, body=BODIES)
async def test_any_json(client: httpx.AsyncClient, path: str, body: object) -> None:
    check(await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


@many
@given(path=POSTS, body=st.dictionaries(FIELDS | st.text(max_size=10), st.text(max_size=30), max_size=6))
async def test_any_form(client: httpx.AsyncClient, path: str, body: dict[str, str]) -> None:
    check(await client.post(path, data=body))
    check(await client.post(path, files=[(name, (None, value.encode())) for name, value in body.items()]))


@many
@given(path=POSTS, body=st.binary(max_size=200), content_type=st.text(st.characters(codec="ascii"), max_size=40))
async def test_any_bytes(client: httpx.AsyncClient, path: str, body: bytes, content_type: str) -> None:
    for kind in (content_type, "application/json", "multipart/form-data; boundary=x"):
        check(await client.post(path, content=body, headers=[(b"content-type", kind.encode())]))


@many
@given(path=GETS, part=st.text(st.characters(codec="utf-8"), max_size=40))
async def test_any_path(client: httpx.AsyncClient, path: str, part: str) -> None:
    check(await client.get(path.format(quote(part, safe=""))))
    check(await client.get(path.format(quote(part))))
    for deed in ("cancel", "remix", "enhance"):
        check(await client.post(f"/v1/videos/{quote(part, safe='')}/{deed}", json={"prompt": "a red circle"}))
    check(await client.delete(f"/v1/videos/{quote(part, safe='')}"))
    check(await client.get(f"/v1/videos/{quote(part, safe='')}/content", params={"variant": "preview"}))


@many
@given(path=POSTS, name=st.sampled_from(HEADERS), value=st.binary(max_size=300))
async def test_any_header(client: httpx.AsyncClient, path: str, name: str, value: bytes) -> None:
    body = {"prompt" if path == "/v1/videos" else "text": "a red circle", "seed": 1}
    check(await client.post(path, json=body, headers=[(name.encode(), value)]))


@many
@given(
    name=st.sampled_from(["status", "state", "tenant", "created_after", "created_before"]),
    value=st.text(max_size=70) | st.floats().map(str) | st.integers().map(str),
)
async def test_any_filter(client: httpx.AsyncClient, name: str, value: str) -> None:
    for path in ("/v1/videos", "/jobs"):
        answer = await client.get(path, params={name: value})
        check(answer)
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == name


@many
@given(limit=st.text(max_size=10), after=st.text(max_size=40), order=st.text(max_size=5))
async def test_any_query(client: httpx.AsyncClient, limit: str, after: str, order: str) -> None:
    for params in ({"limit": limit}, {"after": after}, {"order": order}, {"variant": order}):
        check(await client.get("/v1/videos", params=params))
        check(await client.get("/jobs", params=params))
        check(await client.get("/download/video_" + "0" * 32, params=params))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/../../etc/passwd",
        "/v1/videos/..%2f..%2fetc%2fpasswd",
        "/v1/videos/%2e%2e/content",
        "/v1/videos/video_%00",
        "/v1/videos/video_" + "A" * 32,
        "/v1/videos/video_" + "0" * 32 + "%0a",
        "/v1/videos/video_" + "0" * 5000,
        "/download/..%5c..%5c",
        "/status/%ff%fe",
        "/v1/videos/",
        "//v1/videos",
        "/docs",
        "/redoc",
        "/nothing",
    ],
)
async def test_paths_that_lead_nowhere(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    check(answer)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/videos", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/v1/videos/video_" + "0" * 32, "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/v1/videos/x/content", "GET, HEAD, OPTIONS"),
        ("GET", "/generate", "OPTIONS, POST"),
        ("GET", "/cancel/x", "OPTIONS, POST"),
        ("DELETE", "/v1/videos/x/cancel", "OPTIONS, POST"),
        ("POST", "/v1/videos/x/history", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/videos/x/remix", "OPTIONS, POST"),
        ("GET", "/v1/videos/x/enhance", "OPTIONS, POST"),
        ("POST", "/v1/videos/x/events", "GET, HEAD, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_wrong_methods(client: httpx.AsyncClient, method: str, path: str, allowed: str) -> None:
    answer = await client.request(method, path)
    check(answer)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_what_is_no_id_never_reaches_the_registry() -> None:
    services = FakeServices()
    services.memory.reachable = False
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/videos/video_%00")).status_code == 404
        assert (await client.get("/v1/videos?after=video_%00")).status_code == 400
        assert (await client.post("/v1/videos/video_%00/cancel")).status_code == 404
        assert (await client.get("/v1/videos/video_%00/history")).status_code == 404
        assert (await client.get("/v1/videos/video_%00/content?variant=preview")).status_code == 404


async def test_wrong_content_type(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/videos", content=b"x", headers={"content-type": "text/plain"})
    check(answer)
    assert answer.status_code == 415


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_too_large(client: httpx.AsyncClient, declared: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 100_000

    body: Any = b" " * 1_100_000 if declared else pieces()
    answer = await client.post("/generate", content=body, headers={"content-type": "application/json"})
    check(answer)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "value", ["1", "-1", "5-2", "bytes=5-2", "bytes=--1", "bytes=a-b", "bytes=0-" + "9" * 500, "\x7f"]
)
async def test_odd_headers_on_a_download(value: str) -> None:
    services = FakeServices()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(services)), base_url="http://test") as client:
        video_id = (await client.post("/generate", json={"text": "a red circle"})).json()["id"]
        services.memory.complete(video_id)
        services.add_file(video_id, "video", b"0123456789")
        for name in ("Range", "If-Range", "If-None-Match"):
            answer = await client.get(f"/download/{video_id}", headers={name: value})
            check(answer)
            assert answer.content == b"0123456789"
