"""The API behind nginx with its defaults: nobody should have to set something there first."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from serve_app.ingress.job_access import LONGEST_WAIT_S, Timing
from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import serving
from tests.support.http.sse import Event, read_event
from tests.support.servers.nginx import NGINX, nginx_before

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

PROXY_READ_TIMEOUT_S = 60  # nginx's default
FILE = bytes(range(256)) * 200_000  # 51 MB
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Site:
    """nginx before an app over services in memory. url: nginx's."""

    url: str
    services: FakeServices
    client: httpx.AsyncClient

    async def made(self) -> str:
        return str((await self.client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    services = FakeServices(timing=Timing(longest_wait_s=0.3, heartbeat_s=0.5))
    async with serving(services, services.memory) as direct:
        with nginx_before(direct) as url:
            async with httpx.AsyncClient(base_url=url, timeout=300) as client:
                assert (await client.get("/v1/models")).headers["server"].startswith("nginx")
                yield Site(url, services, client)


async def test_events_come_one_by_one(site: Site) -> None:
    video_id = await site.made()
    async with asyncio.timeout(300), site.client.stream("GET", f"/v1/videos/{video_id}/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = _events(answer)
        # Each is there before the next one happens: an answer that is collected on the way would never get on.
        assert [(await anext(events)).name for _ in range(2)] == ["state", "progress"]
        for state in (JobState.ENCODING, JobState.QUEUED, JobState.SAMPLING):
            site.services.memory.move(video_id, state)
            while (event := await anext(events)).name != "state":
                pass
            assert event.data["state"] == state
        while (await anext(events)).name != "ping":
            pass
        await site.services.memory.cancel(video_id)
        assert [event.name async for event in events if event.name != "ping"] == ["state", "done"]


async def _events(answer: httpx.Response) -> AsyncIterator[Event]:
    text = ""
    async for part in answer.aiter_text():
        *whole, text = (text + part).split("\n\n")
        for block in whole:
            yield read_event(block)


async def test_the_longest_wait_is_answered(site: Site) -> None:
    answer = await site.client.get(f"/v1/videos/{await site.made()}?wait=60")
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    video_id = await site.made()
    site.services.memory.complete(video_id)
    assert (await site.client.get(f"/v1/videos/{video_id}?wait=60")).json()["state"] == "completed"
    # The test's times are short. These are a server's, with room for a slow one.
    assert LONGEST_WAIT_S + 5 < PROXY_READ_TIMEOUT_S
    assert Timing().longest_wait_s == LONGEST_WAIT_S and Timing().heartbeat_s < LONGEST_WAIT_S


async def test_a_large_file_whole_and_in_parts(site: Site) -> None:
    video_id = await site.made()
    site.services.memory.complete(video_id)
    site.services.add_file(video_id, "video", FILE)
    path, read, digest = f"/v1/videos/{video_id}/content", 0, hashlib.sha256()
    async with site.client.stream("GET", path) as answer:
        whole = answer.headers
        async for chunk in answer.aiter_bytes():
            read += len(chunk)
            digest.update(chunk)
    assert (answer.status_code, read) == (200, len(FILE))
    assert digest.digest() == hashlib.sha256(FILE).digest()
    for asked, start, stop in (("bytes=0-99", 0, 100), ("bytes=40000000-40999999", 40_000_000, 41_000_000)):
        part = await site.client.get(path, headers={"Range": asked, "If-Range": whole["etag"]})
        assert (part.status_code, part.content) == (206, FILE[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(FILE)}"
    same = await site.client.get(path, headers={"If-None-Match": whole["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    head = await site.client.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(FILE)), b"")


async def test_head_and_options(site: Site) -> None:
    video_id = await site.made()
    for path in (
        "/health",
        "/v1/models",
        "/v1/videos",
        f"/v1/videos/{video_id}",
        f"/status/{video_id}",
        "/openapi.json",
    ):
        get, head = await site.client.get(path), await site.client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    events = await site.client.head(f"/v1/videos/{video_id}/events")
    assert (events.status_code, events.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    options = await site.client.options(f"/v1/videos/{video_id}")
    assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")


async def test_bodies(site: Site) -> None:
    body = json.dumps({"prompt": "a red circle"}).encode()
    # nginx keeps a long one in a file first; it takes 1 MiB at most, by default, and says so itself.
    long = body + b" " * (MEGABYTE - len(body))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(long), 100_000):
            yield long[start : start + 100_000]

    headers = {"Content-Type": "application/json"}
    for content in (body, long, pieces()):
        assert (await site.client.post("/v1/videos", content=content, headers=headers)).status_code == 200
    waits = {**headers, "Expect": "100-continue"}
    assert (await site.client.post("/v1/videos", content=body, headers=waits)).status_code == 200
    form = await site.client.post("/v1/videos", files={"prompt": (None, "a red circle")})
    assert form.status_code == 200
    refused = await site.client.post("/v1/videos", content=long + b" ", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    assert len(site.services.memory.jobs) == 5
