"""The stream of events of one video: what it tells, in which order, and what it leaves alone."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import httpx
import pytest

from serve_app.access.tenants import Caller
from serve_app.ingress.job_access import Timing
from serve_app.ingress.routes.events import VideoEvents
from serve_app.jobs import Job, JobState, Place
from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import fed_client
from tests.support.http.sse import Event, next_event, read_events

UNKNOWN = "video_" + "0" * 32
CALLER = Caller()
FINAL = [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED]


@pytest.fixture
async def made(client: httpx.AsyncClient) -> str:
    """The id of a video that waits."""
    return str((await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"])


def stream(services: FakeServices, video_id: str, last_event_id: str | None = None) -> AsyncGenerator[bytes, None]:
    return VideoEvents.after(services, CALLER, last_event_id).stream(services.memory.jobs[video_id])


async def until(stream: AsyncIterator[bytes], name: str, pings: bool = False) -> list[Event]:
    """The events up to one with this name. pings: whether heartbeats are told too."""
    found: list[Event] = []
    while not found or found[-1].name != name:
        event = await next_event(stream)
        if pings or event.name != "ping":
            found.append(event)
    return found


async def whole(stream: AsyncIterator[bytes]) -> list[Event]:
    return read_events(b"".join([block async for block in stream]).decode())


def end(services: FakeServices, video_id: str, state: JobState) -> Job:
    if state is JobState.COMPLETED:
        return services.memory.complete(video_id)
    return services.memory.move(video_id, state, completed_at=1.0)


def step(services: FakeServices, video_id: str, number: int) -> None:
    """The sampler has done so many steps."""
    job = services.memory.jobs[video_id]
    services.memory.jobs[video_id] = replace(job, step=number, progress=number / 20)
    services.memory.feed.publish_progress(video_id)


def states(events: list[Event]) -> list[str]:
    return [event.data["state"] for event in events if event.name == "state"]


@pytest.mark.parametrize("state", FINAL)
async def test_a_video_that_has_ended(
    client: httpx.AsyncClient, services: FakeServices, made: str, state: JobState
) -> None:
    end(services, made, state)
    answer = await client.get(f"/v1/videos/{made}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    events = read_events(answer.text)
    history = (await client.get(f"/v1/videos/{made}/history")).json()["data"]
    assert [event.name for event in events] == ["state"] * len(history) + ["done"]
    for number, (event, move) in enumerate(zip(events, history, strict=False), 1):
        assert event.data == {"type": "state", "video_id": made, "number": number} | move
    assert events[-1].data == {"type": "done", "video": (await client.get(f"/v1/videos/{made}")).json()}
    assert all(event.data["type"] == event.name for event in events)


async def test_the_life_of_a_video(services: FakeServices, made: str) -> None:
    registry = services.memory
    async with aclosing(stream(services, made)) as told:
        assert [event.name for event in await until(told, "progress")] == ["state", "progress"]
        registry.move(made, JobState.ENCODING)
        assert states(await until(told, "progress")) == ["encoding"]
        registry.move(made, JobState.QUEUED)
        registry.move(made, JobState.SAMPLING)
        assert states(await until(told, "progress")) == ["queued", "sampling"]
        for number in (1, 2, 3):
            step(services, made, number)
            (progress,) = await until(told, "progress")
            assert (progress.data["step"], progress.data["progress"], progress.id) == (
                number,
                number * 5,
                f"4.{number}",
            )
        registry.move(made, JobState.CANCELLED)
        last = await whole(told)
        assert [event.name for event in last if event.name != "ping"] == ["state", "done"]


async def test_progress_is_told_only_when_it_is_another(services: FakeServices, made: str) -> None:
    async with aclosing(stream(services, made)) as told:
        await until(told, "progress")
        services.memory.feed.publish_progress(made)
        await services.memory.feed.flush()
        step(services, made, 1)
        (progress,) = await until(told, "progress")
        assert progress.data["step"] == 1


async def test_the_place_in_the_queue_is_told(services: FakeServices, made: str) -> None:
    async with aclosing(stream(services, made)) as told:
        await until(told, "progress")
        services.memory.feed.publish_places({made: Place(4, 100.5, 200.5)})
        await services.memory.feed.flush()
        step(services, made, 0)
        (progress,) = await until(told, "progress")
        place = [progress.data[name] for name in ("queue_position", "estimated_start_at", "estimated_completion_at")]
        assert place == [4, 100, 200]


async def test_replay_from_every_event(client: httpx.AsyncClient, services: FakeServices, made: str) -> None:
    services.memory.complete(made)
    url = f"/v1/videos/{made}/events"
    events = read_events((await client.get(url)).text)
    assert len({event.id for event in events[:-1]}) == len(events) - 1
    for seen, event in enumerate(events[:-1], 1):
        rest = read_events((await client.get(url, headers={"Last-Event-ID": event.id})).text)
        assert rest == events[seen:], event.id
    again = read_events((await client.get(url, headers={"Last-Event-ID": events[-1].id})).text)
    assert again == events[-1:]


@pytest.mark.parametrize("odd", ["", "x", "1", "1.", "-1.0", "1.0.0", "٣.0", "1e3.0", "9" * 30 + ".0", "0.0"])
async def test_an_id_that_is_none_of_ours_begins_anew(
    client: httpx.AsyncClient, services: FakeServices, made: str, odd: str
) -> None:
    services.memory.complete(made)
    url = f"/v1/videos/{made}/events"
    headers = {"Last-Event-ID": odd.encode()}
    assert (await client.get(url, headers=headers)).text == (await client.get(url)).text  # type: ignore[arg-type]


async def test_an_id_from_the_future_tells_only_the_end(
    client: httpx.AsyncClient, services: FakeServices, made: str
) -> None:
    services.memory.complete(made)
    answer = await client.get(f"/v1/videos/{made}/events", headers={"Last-Event-ID": "999.0"})
    assert [event.name for event in read_events(answer.text)] == ["done"]


async def test_going_on_elsewhere_tells_nothing_twice(services: FakeServices, made: str) -> None:
    """Broken off after each event and taken up again: what was told in all is what one stream tells."""
    last: str | None = None
    seen: list[Event] = []
    services.memory.complete(made)
    await services.memory.feed.flush()
    while not seen or seen[-1].name != "done":
        async with aclosing(stream(services, made, last)) as told:
            seen.append(await next_event(told))
            last = seen[-1].id
    assert seen == await whole(stream(services, made))


async def test_previews_are_told_once_each(services: FakeServices, made: str) -> None:
    registry = services.memory
    registry.move(made, JobState.SAMPLING, step=4, preview_step=4)
    registry.previews[made] = b"first"
    async with aclosing(stream(services, made)) as told:
        first = (await until(told, "preview"))[-1]
        assert (first.data["step"], b64decode(first.data["image"]), first.data["video_id"]) == (4, b"first", made)
        step(services, made, 5)
        assert [event.name for event in await until(told, "progress")] == ["progress"]
        registry.jobs[made] = replace(registry.jobs[made], preview_step=8)
        registry.previews[made] = b"second"
        step(services, made, 8)
        second = (await until(told, "preview"))[-1]
        assert (second.data["step"], b64decode(second.data["image"])) == (8, b"second")
        assert registry.calls["preview"] == 2


async def test_a_preview_that_is_gone_is_no_event(services: FakeServices, made: str) -> None:
    services.memory.move(made, JobState.SAMPLING, step=4, preview_step=4)
    async with aclosing(stream(services, made)) as told:
        await until(told, "progress")
        services.memory.move(made, JobState.CANCELLED)
        assert "preview" not in [event.name for event in await whole(told)]


async def test_a_deletion_ends_it(client: httpx.AsyncClient, services: FakeServices, made: str) -> None:
    async with aclosing(stream(services, made)) as told:
        await until(told, "progress")
        assert (await client.delete(f"/v1/videos/{made}")).status_code == 200
        last = [event for event in await whole(told) if event.name in ("deleted", "done")]
    assert [event.name for event in last] == ["deleted"]
    assert last[0].data == {"type": "deleted", "video_id": made}


QUICK_HEARTBEATS = Timing(heartbeat_s=0.01)


async def test_heartbeats_while_nothing_happens(services: FakeServices, made: str) -> None:
    services.timing = QUICK_HEARTBEATS
    async with aclosing(stream(services, made)) as told:
        await until(told, "progress")
        assert [(await next_event(told)).name for _ in range(3)] == ["ping"] * 3
        services.memory.move(made, JobState.ENCODING)
        assert states(await until(told, "progress")) == ["encoding"]


async def test_a_registry_that_is_away_interrupts_nothing(unfed: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await unfed.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    services.timing = QUICK_HEARTBEATS
    async with aclosing(stream(services, video_id)) as told:
        await until(told, "progress")
        services.memory.reachable = False
        assert (await until(told, "ping", pings=True))[-1].name == "ping"
        services.memory.move(video_id, JobState.ENCODING)
        assert [(await next_event(told)).name for _ in range(3)] == ["ping"] * 3
        services.memory.reachable = True
        services.memory.move(video_id, JobState.CANCELLED)
        assert states(await whole(told)) == ["encoding", "cancelled"]


async def test_without_a_feed_it_looks_for_itself(unfed: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = (await unfed.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    services.timing = QUICK_HEARTBEATS
    async with aclosing(stream(services, video_id)) as told:
        await until(told, "progress")
        services.memory.complete(video_id)
        events = await whole(told)
    assert states(events)[-1] == "completed"
    assert events[-1].name == "done"


async def test_a_closed_stream_cancels_nothing_and_leaves_nothing(services: FakeServices, made: str) -> None:
    told = stream(services, made)
    await until(told, "progress")
    assert made in services.feed.watched_jobs
    await told.aclose()
    assert not services.feed.watched_jobs
    assert services.memory.jobs[made].state is JobState.QUEUED
    assert services.memory.calls["cancel"] == 0


async def test_a_client_that_leaves_in_the_middle(services: FakeServices) -> None:
    async with fed_client(services) as client:
        video_id = (await client.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
        asking = asyncio.create_task(client.get(f"/v1/videos/{video_id}/events"))
        async with asyncio.timeout(300):
            while video_id not in services.feed.watched_jobs:
                await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert not services.feed.watched_jobs
        assert (await client.get(f"/v1/videos/{video_id}")).json()["state"] == "queued"


async def test_many_readers_are_told_the_same(services: FakeServices, made: str) -> None:
    readers = [asyncio.create_task(whole(stream(services, made))) for _ in range(20)]
    await asyncio.sleep(0)
    services.memory.complete(made)
    told = await asyncio.gather(*readers)
    assert all(states(events) == states(told[0]) for events in told)
    assert all(events[-1] == told[0][-1] for events in told)
    assert services.memory.calls["history"] == 0


@pytest.mark.parametrize("video_id", [UNKNOWN, "nothing"])
async def test_no_stream_of_nothing(client: httpx.AsyncClient, services: FakeServices, video_id: str) -> None:
    answer = await client.get(f"/v1/videos/{video_id}/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")
    assert answer.headers["content-type"] == "application/json"
    assert not services.feed.watched_jobs
