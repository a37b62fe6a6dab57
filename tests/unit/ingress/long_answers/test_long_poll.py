"""GET with `wait`: answered when the video is final, or when the time is over."""

import asyncio
import time

import httpx
import pytest

from serve_app.ingress.app import create_app
from serve_app.ingress.job_access import LONGEST_WAIT_S, Timing
from serve_app.ingress.routes.videos import MAX_WAIT_S
from serve_app.jobs import JobState
from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import fed_client

# After so long without a byte nginx (proxy_read_timeout), and many a load balancer, give a request up.
PROXY_PATIENCE_S = 60

PATHS = pytest.mark.parametrize("path", ["/v1/videos/{}", "/status/{}"])


async def make(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


async def waiting(services: FakeServices, video_id: str) -> None:
    """Until somebody waits for the video."""
    async with asyncio.timeout(300):
        while video_id not in services.feed.watched_jobs:
            await asyncio.sleep(0.001)


@PATHS
@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
async def test_the_end_answers_at_once(
    client: httpx.AsyncClient, services: FakeServices, path: str, state: JobState
) -> None:
    video_id = await make(client)
    polling = asyncio.create_task(client.get(path.format(video_id), params={"wait": "60"}))
    await waiting(services, video_id)
    if state is JobState.COMPLETED:
        services.memory.complete(video_id)
    else:
        services.memory.move(video_id, state, completed_at=1.0)
    answer = await polling
    assert answer.json()["state"] == state
    assert "openai-poll-after-ms" not in answer.headers
    assert not services.feed.watched_jobs


async def test_a_final_video_is_not_waited_for(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(client)
    services.memory.complete(video_id)
    assert (await client.get(f"/v1/videos/{video_id}?wait=60")).json()["status"] == "completed"


async def test_a_move_on_the_way_is_no_end(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(client)
    polling = asyncio.create_task(client.get(f"/v1/videos/{video_id}?wait=60"))
    await waiting(services, video_id)
    services.memory.move(video_id, JobState.ENCODING)
    await services.memory.feed.flush()
    assert not polling.done()
    await services.memory.cancel(video_id)
    assert (await polling).json()["state"] == "cancelled"


@PATHS
async def test_when_the_time_is_over_it_tells_how_it_is(client: httpx.AsyncClient, path: str) -> None:
    video_id = await make(client)
    began = time.monotonic()
    answer = await client.get(path.format(video_id), params={"wait": "0.2"})
    assert time.monotonic() - began >= 0.2
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert answer.headers["openai-poll-after-ms"] == "250"


@PATHS
async def test_it_is_answered_before_a_proxy_gives_up(path: str) -> None:
    async with fed_client(FakeServices(timing=Timing(longest_wait_s=0.1))) as client:
        video_id = await make(client)
        async with asyncio.timeout(50):
            answer = await client.get(path.format(video_id), params={"wait": str(MAX_WAIT_S)})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert answer.headers["openai-poll-after-ms"] == "250"


@pytest.mark.parametrize("path", ["/v1/videos", "/generate", "/v1/videos/generations"])
async def test_a_request_that_prefers_to_wait_is_answered_as_soon(path: str) -> None:
    async with fed_client(FakeServices(timing=Timing(longest_wait_s=0.125))) as client:
        async with asyncio.timeout(50):
            body = {"text" if path == "/generate" else "prompt": "a red circle"}
            answer = await client.post(path, json=body, headers={"Prefer": "wait=600"})
    assert answer.is_success and answer.json()["state"] == "queued"
    assert answer.headers["preference-applied"] == "wait=0.125"


def test_no_request_is_silent_for_as_long_as_proxies_wait() -> None:
    assert MAX_WAIT_S == PROXY_PATIENCE_S  # so much may still be asked for
    assert max(LONGEST_WAIT_S, Timing().longest_wait_s, Timing().heartbeat_s) <= PROXY_PATIENCE_S - 10


@PATHS
def test_the_document_says_when_it_is_answered(path: str) -> None:
    operation = create_app(FakeServices()).openapi()["paths"][path.format("{video_id}")]["get"]
    (wait,) = [parameter for parameter in operation["parameters"] if parameter["name"] == "wait"]
    assert wait["schema"]["maximum"] == MAX_WAIT_S and f"{LONGEST_WAIT_S:g} at most" in wait["description"]


async def test_a_deletion_ends_the_wait(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(client)
    polling = asyncio.create_task(client.get(f"/v1/videos/{video_id}?wait=60"))
    await waiting(services, video_id)
    await client.delete(f"/v1/videos/{video_id}")
    answer = await polling
    # It was cancelled first, and then it was gone.
    assert answer.status_code == 404 or answer.json()["state"] == "cancelled"


async def test_without_a_feed_it_looks_for_itself(unfed: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(unfed)
    polling = asyncio.create_task(unfed.get(f"/v1/videos/{video_id}?wait=60"))
    await waiting(services, video_id)
    services.memory.complete(video_id)
    assert (await polling).json()["status"] == "completed"


async def test_who_leaves_is_waited_for_no_more(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(client)
    polling = asyncio.create_task(client.get(f"/v1/videos/{video_id}?wait=60"))
    await waiting(services, video_id)
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)
    assert not services.feed.watched_jobs
    assert services.memory.jobs[video_id].state is JobState.QUEUED


@PATHS
@pytest.mark.parametrize("wait", ["-1", "60.5", "61", "nan", "inf", "1e9", "soon", ""])
async def test_how_long_may_be_waited(client: httpx.AsyncClient, path: str, wait: str) -> None:
    answer = await client.get(path.format(await make(client)), params={"wait": wait})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("wait", "invalid_value")


async def test_nothing_is_not_waited_for(client: httpx.AsyncClient, services: FakeServices) -> None:
    for video_id in ("video_" + "0" * 32, "nothing"):
        answer = await client.get(f"/v1/videos/{video_id}?wait=60")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")
    assert not services.feed.watched_jobs
