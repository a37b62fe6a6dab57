from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from deployments.settings import SamplingSettings
from serve_app.ingress import create_app
from serve_app.jobs import JobError, JobState
from tests.fakes import FakeServices, shapes_settings

DATA = bytes(range(256)) * 20


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    assert services.storage.open_streams == 0


async def queued(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


@pytest.fixture
async def path(client: httpx.AsyncClient, services: FakeServices) -> str:
    video_id = await queued(client)
    services.registry.complete(video_id)
    services.storage.files[video_id, "video"] = DATA
    services.storage.files[video_id, "thumbnail"] = b"poster"
    return f"/v1/videos/{video_id}/content"


async def test_the_whole_file(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["last-modified"] == "Thu, 02 Jan 2025 03:04:05 GMT"
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-disposition"] == f'attachment; filename="{path.split("/")[3]}.mp4"'


async def test_head_has_the_headers_of_get(client: httpx.AsyncClient, path: str) -> None:
    whole, head = await client.get(path), await client.head(path)
    assert head.headers == whole.headers
    assert (head.status_code, head.content) == (200, b"")
    with_range = await client.head(path, headers={"Range": "bytes=0-1"})
    assert (with_range.status_code, with_range.headers) == (200, whole.headers)


async def test_the_poster(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params={"variant": "thumbnail"})
    assert (answer.content, answer.headers["content-type"]) == (b"poster", "image/webp")
    assert answer.headers["content-disposition"].endswith('.webp"')


async def test_no_other_variant(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params={"variant": "spritesheet"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "variant"
    assert "'video', 'thumbnail' or 'preview'" in answer.json()["error"]["message"]


async def test_the_preview_of_a_video_that_is_sampled(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await queued(client)
    services.registry.previews[video_id] = b"webp so far"
    for path in (f"/v1/videos/{video_id}/content", f"/download/{video_id}"):
        answer = await client.get(path, params={"variant": "preview"}, headers={"Range": "bytes=0-3"})
        assert (answer.status_code, answer.content) == (200, b"webp so far")
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/webp", "no-store")
        head = await client.head(path, params={"variant": "preview"})
        assert (head.status_code, head.content, head.headers) == (200, b"", answer.headers)


async def preview_error(client: httpx.AsyncClient, video_id: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/videos/{video_id}/content", params={"variant": "preview"})
    assert answer.status_code == 404
    return dict(answer.json()["error"])


async def test_no_preview_yet(client: httpx.AsyncClient) -> None:
    error = await preview_error(client, await queued(client))
    assert (error["param"], error["code"]) == ("video_id", "preview_not_ready")
    assert "is queued and has no preview now" in error["message"]
    assert "every 5 steps" in error["message"]


async def test_no_preview_any_more(client: httpx.AsyncClient, path: str) -> None:
    error = await preview_error(client, path.split("/")[3])
    assert error["code"] == "preview_not_ready"
    assert "is completed; it has previews only while it is sampled" in error["message"]


@pytest.mark.parametrize("video_id", ["video_" + "0" * 32, "nothing"])
async def test_no_preview_of_nothing(client: httpx.AsyncClient, video_id: str) -> None:
    assert (await preview_error(client, video_id))["code"] == "video_not_found"


async def test_no_preview_on_a_server_that_makes_none() -> None:
    settings = shapes_settings()
    off = settings.model_copy(update={"sampling": SamplingSettings(preview_every=0)})
    transport = httpx.ASGITransport(create_app(FakeServices(off)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        error = await preview_error(client, await queued(client))
    assert "sampling.preview_every is 0" in error["message"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=1000-2999", 1000, 3000), ("bytes=5000-", 5000, 5120), ("bytes=-7", 5113, 5120)],
)
async def test_a_range(client: httpx.AsyncClient, path: str, asked: str, start: int, stop: int) -> None:
    answer = await client.get(path, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, DATA[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert answer.headers["content-length"] == str(stop - start)


async def test_a_range_behind_the_end(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"Range": "bytes=5120-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */5120"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


async def test_if_range(client: httpx.AsyncClient, path: str) -> None:
    whole = await client.get(path)
    for validator in ("etag", "last-modified"):
        headers = {"Range": "bytes=0-9", "If-Range": whole.headers[validator]}
        assert (await client.get(path, headers=headers)).status_code == 206
    for other in ('"other"', "Fri, 03 Jan 2025 03:04:05 GMT", "W/" + whole.headers["etag"]):
        headers = {"Range": "bytes=0-9", "If-Range": other}
        assert (await client.get(path, headers=headers)).status_code == 200


async def test_if_none_match(client: httpx.AsyncClient, path: str) -> None:
    etag = (await client.get(path)).headers["etag"]
    for same in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await client.get(path, headers={"If-None-Match": same})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_not_ready(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/videos/{await queued(client)}/content")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "video_not_ready"
    assert "x-should-retry" not in answer.headers


async def test_failed(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await queued(client)
    services.registry.move(video_id, JobState.FAILED, error=JobError("out_of_memory", "no room"))
    answer = await client.get(f"/v1/videos/{video_id}/content")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("out_of_memory", "The video is failed: no room")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_file_that_is_gone(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.storage.files.clear()
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "content_not_found"


async def test_a_store_that_is_away(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.storage.reachable = False
    answer = await client.get(path)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "storage_unavailable"
    assert answer.headers["retry-after"] == "2"


async def test_a_client_that_stops_reading_frees_the_stream(services: FakeServices, path: str) -> None:
    sent = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal sent
        sent += message["type"] == "http.response.body"
        if sent == 2:
            raise OSError("connection lost")

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("test", 80), "asgi": {"spec_version": "2.4"}}
    await create_app(services)(scope, receive, send)
    assert sent == 2
    assert services.storage.open_streams == 0
