"""A video is there until the second that its client was told, and nowhere from then on, swept or not."""

from typing import Any

import httpx
import pytest

from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices
from tests.support.http.sse import read_events

BODY = {"prompt": "a red circle"}
READS = [
    ("GET", "/v1/videos/{}"),
    ("GET", "/v1/videos/{}?wait=1"),
    ("HEAD", "/v1/videos/{}"),
    ("GET", "/status/{}"),
    ("GET", "/v1/videos/generations/{}"),
    ("GET", "/v1/videos/{}/history"),
    ("GET", "/v1/videos/{}/events"),
    ("GET", "/v1/videos/{}/content"),
    ("HEAD", "/v1/videos/{}/content"),
    ("GET", "/v1/videos/{}/content?variant=thumbnail"),
    ("GET", "/v1/videos/{}/content?variant=spritesheet"),
    ("GET", "/v1/videos/generations/{}/download"),
    ("POST", "/v1/videos/{}/remix"),
    ("POST", "/v1/videos/{}/enhance"),
]


async def finished(client: httpx.AsyncClient, services: FakeServices) -> tuple[str, int]:
    """The id of a video, and when it expires."""
    video_id = (await client.post("/v1/videos", json=BODY)).json()["id"]
    services.memory.complete(video_id)
    for variant in ("video", "thumbnail", "spritesheet"):
        services.add_file(video_id, variant, b"bytes")
    video: dict[str, Any] = (await client.get(f"/v1/videos/{video_id}?wait=1")).json()
    assert video["status"] == "completed"
    return video_id, video["expires_at"]


@pytest.mark.parametrize("interrupted", [False, True], ids=["from the feed", "from the registry"])
async def test_it_is_everywhere_and_then_nowhere(
    client: httpx.AsyncClient, services: FakeServices, interrupted: bool
) -> None:
    video_id, expires_at = await finished(client, services)
    services.feed.interrupted = interrupted

    async def statuses(now: float) -> set[int]:
        services.now = now
        answers = []
        for method, path in READS:
            body = {"prompt": "a blue square"} if "remix" in path else {}
            answers.append(await client.request(method, path.format(video_id), json=body if method == "POST" else None))
        return {answer.status_code for answer in answers}

    async def listed(now: float, **query: str) -> list[str]:
        services.now = now
        return [video["id"] for video in (await client.get("/v1/videos", params=query)).json()["data"]]

    assert video_id in await listed(expires_at - 0.001)
    assert await statuses(expires_at - 0.001) == {200}
    assert await statuses(expires_at) == {404}
    assert video_id not in await listed(expires_at)
    assert await listed(expires_at, status="completed") == []
    refused = await client.get("/v1/videos", params={"after": video_id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


async def test_one_that_is_being_made_does_not_expire(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await client.post("/v1/videos", json=BODY)).json()["id"]
    services.memory.move(video_id, JobState.ENCODING)
    services.now = 10e9
    assert (await client.get(f"/v1/videos/{video_id}")).status_code == 200


async def test_events_of_one_that_has_not_expired_end_with_it(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    video_id, expires_at = await finished(client, services)
    services.now = expires_at - 1
    answer = await client.get(f"/v1/videos/{video_id}/events")
    assert read_events(answer.text)[-1].name == "done"
