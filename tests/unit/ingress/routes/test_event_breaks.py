"""The events of a video while the registry dies and comes back: every move once, then the end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.errors import RegistryUnavailableError
from deployments.messages import Stage
from serve_app.access.tenants import Caller
from serve_app.ingress import events as video_events
from serve_app.ingress.events import VideoEvents
from serve_app.jobs import Job, JobState, Move
from tests.support.http.fakes import FakeServices, MemoryRegistry
from tests.support.http.sse import Event, next_event

ALL = [1, 2, 3, 4, 5, 6, 7]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_events, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr("serve_app.ingress.services.LOOK_AGAIN_S", 0.02)


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


def follow(services: FakeServices, job: Job) -> AsyncIterator[bytes]:
    return VideoEvents.after(services, Caller(), None).of(job)


async def events(stream: AsyncIterator[bytes], count: int) -> list[Event]:
    """The next ones but heartbeats."""
    found: list[Event] = []
    while len(found) < count:
        event = await next_event(stream)
        found += [] if event.name == "ping" else [event]
    return found


def numbers(found: list[Event]) -> list[int]:
    return [event.data["number"] for event in found if event.name == "state"]


def once_away(method: Callable[[str], Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
    """The first call finds the registry killed."""
    calls = 0

    async def call(job_id: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RegistryUnavailableError("killed on purpose")
        return await method(job_id)

    return call


async def test_a_preview_that_cannot_be_had_loses_no_move(
    services: FakeServices, registry: MemoryRegistry, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry dies when the moves are known, and the picture is yet to be asked for."""
    registry.move(job.id, JobState.ENCODING)
    registry.move(job.id, JobState.QUEUED, stage=Stage.SAMPLING)
    registry.move(job.id, JobState.SAMPLING, step=5, preview_step=5)
    registry.previews[job.id] = b"WebP"
    await registry.feed.flush()
    monkeypatch.setattr(registry, "preview", once_away(registry.preview))
    found = await events(follow(services, job), 6)
    assert numbers(found) == [1, 2, 3, 4]
    assert [event.name for event in found[4:]] == ["progress", "preview"]


async def test_the_end_is_told_although_the_history_could_not_be_had_at_first(
    services: FakeServices, registry: MemoryRegistry, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that knows the end of a job and not its moves, as after a restart of the registry."""
    registry.complete(job.id)
    await registry.feed.flush()
    monkeypatch.setattr(services.feed, "moves", lambda _: None)
    monkeypatch.setattr(registry, "history", once_away(registry.history))
    found = await events(follow(services, job), 8)
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_the_end_waits_for_a_history_that_is_behind(
    services: FakeServices, registry: MemoryRegistry, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry told of the end, and the moves are from a feed that came back a moment before it."""
    registry.complete(job.id)
    await registry.feed.flush()
    moves, looks = services.feed.moves, 0

    def behind(job_id: str) -> tuple[Move, ...] | None:
        nonlocal looks
        looks += 1
        known = moves(job_id)
        return known if known is None or looks > 1 else known[:-1]

    monkeypatch.setattr(services.feed, "moves", behind)
    found = await events(follow(services, job), 8)
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_while_the_registry_is_away_there_are_heartbeats(
    services: FakeServices, registry: MemoryRegistry, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = follow(services, job)
    first = await events(stream, 2)
    with monkeypatch.context() as away:
        away.setattr(registry, "reachable", False)
        away.setattr("serve_app.feed.follower.FeedFollower.valid", False)
        assert [(await next_event(stream)).name for _ in range(4)] == 4 * ["ping"]
    registry.complete(job.id)
    # Progress may be told in between.
    found = first + [event for event in await events(stream, 7) if event.name != "progress"]
    assert (numbers(found), found[-1].name) == (ALL, "done")


async def test_who_was_told_of_the_end_gets_the_file_elsewhere(
    services: FakeServices,
    client: httpx.AsyncClient,
    registry: MemoryRegistry,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another replica, which has not heard of the end yet, asks before it says that the video is not ready."""
    services.storage.files[job.id, "video"] = b"mp4"
    behind = replace(job, state=JobState.DECODING, stage=Stage.DECODING)
    registry.complete(job.id)
    monkeypatch.setattr(services.feed, "get", lambda _: behind)
    assert (await client.get(f"/v1/videos/{job.id}/content")).content == b"mp4"
    monkeypatch.setattr(registry, "jobs", {})
    assert (await client.get(f"/v1/videos/{job.id}/content")).status_code == 404
