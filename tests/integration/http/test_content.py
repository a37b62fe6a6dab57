from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message

from deployments.keys import video_key
from deployments.settings import SamplingSettings, StorageSettings
from deployments.storage.object_store import ObjectStore
from serve_app.client.download import download
from serve_app.client.http import Client
from serve_app.feed.follower import FeedFollower
from serve_app.ingress.app import create_app
from serve_app.ingress.services import Services
from serve_app.jobs import JobError, JobState
from serve_app.registry_api import RegistryClient
from tests.support.http.fakes import FakeServices, MemoryRegistry, shapes_settings
from tests.support.http.memory_http import serving
from tests.support.logs import begun_log

DATA = bytes(range(256)) * 20


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
async def client(services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    assert services.store.open_streams == 0


async def queued(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


@pytest.fixture
async def path(client: httpx.AsyncClient, services: FakeServices) -> str:
    video_id = await queued(client)
    services.memory.complete(video_id)
    services.add_file(video_id, "video", DATA)
    services.add_file(video_id, "thumbnail", b"poster")
    services.add_file(video_id, "spritesheet", b"sprites")
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


async def test_the_spritesheet(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params={"variant": "spritesheet"})
    assert (answer.content, answer.headers["content-type"]) == (b"sprites", "image/webp")
    assert answer.headers["content-disposition"].endswith('.sprites.webp"')
    part = await client.get(path, params={"variant": "spritesheet"}, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"pri")


async def test_a_video_made_before_there_were_spritesheets(
    client: httpx.AsyncClient, services: FakeServices, path: str
) -> None:
    del services.store.objects[video_key(path.split("/")[3], "spritesheet")]
    answer = await client.get(path, params={"variant": "spritesheet"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "content_not_found"
    assert "has no spritesheet: it was made before there were any" in error["message"]
    assert (await client.get(path)).status_code == 200


async def test_no_other_variant(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params={"variant": "poster"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "variant"
    assert "'video', 'thumbnail', 'spritesheet' or 'preview'" in answer.json()["error"]["message"]


async def test_the_preview_of_a_video_that_is_sampled(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await queued(client)
    services.memory.previews[video_id] = b"webp so far"
    for path in (f"/v1/videos/{video_id}/content", f"/download/{video_id}"):
        answer = await client.get(path, params={"variant": "preview"}, headers={"Range": "bytes=0-3"})
        assert (answer.status_code, answer.content) == (200, b"webp so far")
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/webp", "no-store")
        head = await client.head(path, params={"variant": "preview"})
        assert (head.status_code, head.content, head.headers) == (200, b"", answer.headers)


@pytest.mark.parametrize("path", ["/v1/videos", "/status"])
async def test_a_video_told_with_its_preview(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    video_id = await queued(client)
    plain = (await client.get(f"{path}/{video_id}")).json()
    assert "preview" not in plain
    asked = f"{path}/{video_id}?include=preview"
    assert (await client.get(asked)).json() == plain
    services.memory.previews[video_id] = b"webp so far"
    assert (await client.get(asked)).json() == {**plain, "preview": b64encode(b"webp so far").decode()}
    services.memory.complete(video_id)
    completed = (await client.get(asked)).json()
    assert completed["status"] == "completed" and "preview" not in completed
    refused = await client.get(f"{path}/{video_id}?include=thumbnail")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include")
    assert "'preview'" in refused.json()["error"]["message"]


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
    services.memory.move(video_id, JobState.FAILED, error=JobError("out_of_memory", "no room"))
    answer = await client.get(f"/v1/videos/{video_id}/content")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("out_of_memory", "The video is failed: no room")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_file_that_is_gone(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.store.objects.clear()
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "content_not_found"


async def test_a_store_that_is_away(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    services.store.reachable = False
    with begun_log("ingress") as lines:
        answer = await client.get(path)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "storage_unavailable"
    assert answer.headers["retry-after"] == "2"
    (line,) = lines()
    job = services.memory.jobs[path.split("/")[3]]
    assert (line["job"], line["tenant"], line["trace_id"]) == (job.id, job.tenant, job.trace.trace_id)
    assert (line["stage"], line["levelname"]) == ("ingress", "ERROR")


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
    assert services.store.open_streams == 0


# Signed links, over a real store that clients reach under another name


@dataclass(frozen=True)
class Public:
    """A completed video of a server whose store is public. url: of the server."""

    url: str
    video_id: str
    store: ObjectStore

    @property
    def path(self) -> str:
        return f"{self.url}/v1/videos/{self.video_id}/content"

    @property
    def link_path(self) -> str:
        """The same, for a client that wants a link."""
        return f"{self.path}?redirect=true"


@pytest.fixture
def redirect() -> str:
    """storage.redirect"""
    return "auto"


@pytest.fixture
async def public(storage_settings: StorageSettings, redirect: str) -> AsyncIterator[Public]:
    assert storage_settings.endpoint is not None
    reached = {"public_endpoint": storage_settings.endpoint.replace("127.0.0.1", "localhost"), "public_secure": False}
    storage = storage_settings.model_copy(update={**reached, "redirect": redirect})
    settings, registry = shapes_settings().model_copy(update={"storage": storage}), MemoryRegistry()
    store, link = ObjectStore(storage), RegistryClient(registry)
    async with (
        serving(Services(settings, link, store, FeedFollower(link), unix_time=lambda: 0.0), registry) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        video_id = await queued(client)
        registry.complete(video_id)
        await store.put(video_key(video_id), DATA, "video/mp4")
        yield Public(url, video_id, store)


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """Does not follow redirects unless told."""
    async with httpx.AsyncClient() as client:
        yield client


async def test_a_file_in_a_public_store_is_a_redirect_to_it(browser: httpx.AsyncClient, public: Public) -> None:
    answer = await browser.get(public.link_path)
    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"].startswith("http://localhost:")
    for asked, status, data in ((None, 200, DATA), ("bytes=100-199", 206, DATA[100:200])):
        headers = {"Authorization": "Bearer ms-secret"} | ({} if asked is None else {"Range": asked})
        followed = await browser.get(public.link_path, headers=headers, follow_redirects=True)
        assert (followed.status_code, followed.content) == (status, data)
        assert followed.headers["content-type"] == "video/mp4"
        assert f"{public.video_id}.mp4" in followed.headers["content-disposition"]
        assert "authorization" not in followed.request.headers


async def test_a_link_is_for_one_file_as_long_as_the_settings_say(browser: httpx.AsyncClient, public: Public) -> None:
    link = httpx.URL((await browser.get(public.link_path)).headers["location"])
    assert link.path == f"/{public.store.bucket}/{video_key(public.video_id)}"
    assert link.params["X-Amz-Expires"] == str(StorageSettings().signed_link_s)
    assert link.params["response-content-type"] == "video/mp4"
    disposition = f"attachment; filename*=UTF-8''{public.video_id}.mp4"
    assert link.params["response-content-disposition"] == disposition


@pytest.mark.parametrize(("redirect", "host"), [("auto", "127.0.0.1"), ("always", "localhost"), ("never", "127.0.0.1")])
async def test_the_openai_package_gets_the_file(public: Public, host: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{public.url}/v1", api_key="ms-secret", max_retries=0) as client:
        content = await client.videos.download_content(public.video_id)
        assert content.response.url.host == host
        assert content.content == DATA
        asked = await client.videos.download_content(public.video_id, extra_query={"redirect": "true"})
        assert asked.content == DATA


WISHES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}),
    "a link": ({"redirect": "true"}, {}),
    "no link": ({"redirect": "false"}, {}),
    "a preference": ({}, {"Prefer": "respond-async, Redirect; x=1"}),
    "a preference and no link": ({"redirect": "false"}, {"Prefer": "redirect"}),
    "another preference": ({}, {"Prefer": "redirection, wait=5; redirect"}),
}


@pytest.mark.parametrize(
    ("redirect", "linked"),
    [
        ("auto", {"a link", "a preference"}),
        ("always", {"nothing", "a link", "a preference", "another preference"}),
        ("never", set()),
    ],
)
async def test_who_gets_a_link(browser: httpx.AsyncClient, public: Public, linked: set[str]) -> None:
    for path in (public.path, f"{public.url}/download/{public.video_id}"):
        for name, (params, headers) in WISHES.items():
            answer = await browser.get(path, params=params, headers=headers)
            assert (answer.status_code == 307) == (name in linked), name
            applied = "redirect" if name == "a preference" and name in linked else None
            assert answer.headers.get("preference-applied") == applied
            assert answer.status_code == 307 or (answer.status_code, answer.content) == (200, DATA)
            part = await browser.get(path, params=params, headers={**headers, "Range": "bytes=0-9"})
            assert part.status_code == (307 if name in linked else 206)


async def test_who_follows_no_redirect_and_keeps_its_key_gets_the_file(public: Public) -> None:
    headers = {"Authorization": "Bearer ms-secret"}
    async with httpx.AsyncClient(headers=headers, follow_redirects=False) as client:
        for path in (public.path, f"{public.url}/download/{public.video_id}"):
            assert (await client.get(path)).content == DATA


@pytest.mark.parametrize("redirect", ["auto", "always", "never"])
async def test_our_own_client_takes_a_link_where_there_is_one(public: Public, tmp_path: Path, redirect: str) -> None:
    async with Client(public.url, api_key="ms-secret") as client:
        assert await download(client, public.video_id, tmp_path / "clip.mp4") == len(DATA)
    assert (tmp_path / "clip.mp4").read_bytes() == DATA


async def test_no_redirect_when_it_is_not_wanted(browser: httpx.AsyncClient, public: Public) -> None:
    answer = await browser.get(public.path, params={"redirect": "false"}, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (206, DATA[:10])
    assert (await browser.get(public.path, params={"redirect": "perhaps"})).status_code == 400


async def test_head_and_if_none_match_are_answered_without_the_store(
    browser: httpx.AsyncClient, public: Public
) -> None:
    head = await browser.head(public.link_path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(DATA)))
    same = await browser.get(public.link_path, headers={"If-None-Match": head.headers["etag"]})
    assert (same.status_code, same.headers["etag"]) == (304, head.headers["etag"])
    followed = await browser.get(public.link_path, headers={"If-None-Match": '"other"'}, follow_redirects=True)
    assert (followed.status_code, followed.headers["etag"]) == (200, head.headers["etag"])


async def test_what_is_not_there_is_no_redirect(browser: httpx.AsyncClient, public: Public) -> None:
    answer = await browser.get(public.path, params={"variant": "spritesheet", "redirect": "true"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_not_found")
    await public.store.put(video_key(public.video_id, "spritesheet"), b"sprites", "image/webp")
    answer = await browser.get(
        public.path, params={"variant": "spritesheet", "redirect": "true"}, follow_redirects=True
    )
    assert (answer.content, answer.headers["content-type"]) == (b"sprites", "image/webp")
    assert answer.url.host == "localhost"
    unknown = public.path.replace(public.video_id, "video_" + "0" * 32)
    assert (await browser.get(unknown)).json()["error"]["code"] == "video_not_found"


@pytest.mark.parametrize("change", ["X-Amz-Signature", "X-Amz-Expires", "X-Amz-Date"])
async def test_a_changed_link_is_refused(browser: httpx.AsyncClient, public: Public, change: str) -> None:
    link = httpx.URL((await browser.get(public.link_path)).headers["location"])
    assert (await browser.get(link)).status_code == 200
    old = link.params[change]
    new = old[:-1] + ("1" if old[-1] != "1" else "2") if change != "X-Amz-Date" else f"2001{old[4:]}"
    assert (await browser.get(link.copy_set_param(change, new))).status_code == 403
