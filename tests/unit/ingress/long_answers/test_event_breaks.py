"""The events of a video while the registry dies and comes back: every move once, then the end."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import httpx
import pytest

from deployments.messages import Stage
from serve_app.access.tenants import Caller
from serve_app.ingress.job_access import Timing
from serve_app.ingress.routes.events import VideoEvents
from serve_app.jobs import Job, JobState
from tests.support.http.fakes import FakeServices, MemoryRegistry
from tests.support.http.sse import Event, next_event

ALL = [1, 2, 3, 4, 5, 6, 7]


@pytest.fixture
def services() -> FakeServices:
    return FakeServices(timing=Timing(look_again_s=0.02, heartbeat_s=0.02))


@pytest.fixture
def registry(services: FakeServices) -> MemoryRegistry:
    return services.memory


@pytest.fixture
async def made(client: httpx.AsyncClient) -> str:
    """The id of a video that waits."""
    return str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


@pytest.fixture
async def job(registry: MemoryRegistry, made: str) -> Job:
    return registry.jobs[made]


def follow(services: FakeServices, job: Job) -> AsyncGenerator[bytes, None]:
    return VideoEvents.after(services, Caller(), None).stream(job)


async def events(stream: AsyncIterator[bytes], count: int) -> list[Event]:
    """The next ones but heartbeats."""
    found: list[Event] = []
    while len(found) < count:
        event = await next_event(stream)
        found += [] if event.name == "ping" else [event]
    return found


def numbers(found: list[Event]) -> list[int]:
    return [event.data["number"] for event in found if event.name == "state"]


async def test_a_preview_that_cannot_be_had_loses_no_move(
    services: FakeServices, registry: MemoryRegistry, job: Job
) -> None:
    """The registry dies when the moves are known, and the picture is yet to be asked for."""
    registry.move(job.id, JobState.ENCODING)
    registry.move(job.id, JobState.QUEUED, stage=Stage.SAMPLING)
    registry.move(job.id, JobState.SAMPLING, step=5, preview_step=5)
    registry.previews[job.id] = b"WebP"
    await registry.feed.flush()
    registry.lost_calls["preview"] = 1
    found = await events(follow(services, job), 6)
    assert numbers(found) == [1, 2, 3, 4]
    assert [event.name for event in found[4:]] == ["progress", "preview"]


async def test_the_end_is_told_although_the_history_could_not_be_had_at_first(
    services: FakeServices, registry: MemoryRegistry, job: Job
) -> None:
    """A mirror that knows the end of a job and not its moves, as after a restart of the registry."""
    registry.complete(job.id)
    await registry.feed.flush()
    services.feed.without_history = True
    registry.lost_calls["history"] = 1
    found = await events(follow(services, job), 8)
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_the_end_waits_for_a_history_that_is_behind(
    services: FakeServices, registry: MemoryRegistry, job: Job
) -> None:
    """The registry told of the end, and the moves are from a feed that came back a moment before it."""
    registry.complete(job.id)
    await registry.feed.flush()
    services.feed.late_histories = 1
    found = await events(follow(services, job), 8)
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_while_the_registry_is_away_there_are_heartbeats(
    services: FakeServices, registry: MemoryRegistry, job: Job
) -> None:
    stream = follow(services, job)
    first = await events(stream, 2)
    registry.reachable, services.feed.interrupted = False, True
    assert [(await next_event(stream)).name for _ in range(4)] == 4 * ["ping"]
    registry.reachable, services.feed.interrupted = True, False
    registry.complete(job.id)
    # Progress may be told in between.
    found = first + [event for event in await events(stream, 7) if event.name != "progress"]
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_who_was_told_of_the_end_gets_the_file_elsewhere(
    services: FakeServices,
    client: httpx.AsyncClient,
    registry: MemoryRegistry,
    job: Job,
) -> None:
    """Another replica, which has not heard of the end yet, asks before it says that the video is not ready."""
    services.add_file(job.id, "video", b"mp4")
    registry.complete(job.id)
    services.feed.late_jobs[job.id] = replace(job, state=JobState.DECODING, stage=Stage.DECODING)
    assert (await client.get(f"/v1/videos/{job.id}/content")).content == b"mp4"
    registry.jobs.clear()
    assert (await client.get(f"/v1/videos/{job.id}/content")).status_code == 404
