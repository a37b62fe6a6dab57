"""Listings by filter and page, and the history of one video."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.jobs import JobError, JobState
from tests.support.http.fakes import FakeServices
from tests.support.http.memory_http import fed_client, unfed_client

VIDEO_STATES = [state for state in JobState if state is not JobState.EMBEDDING]
LISTINGS = pytest.mark.parametrize("path", ["/v1/videos", "/jobs"])


@pytest.fixture(params=["feed", "registry"])
async def client(request: pytest.FixtureRequest, services: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """Listings are answered from the feed, and by the registry where it does not reach; nobody can tell which."""
    async with fed_client(services) if request.param == "feed" else unfed_client(services) as client:
        yield client


async def make(client: httpx.AsyncClient, tenant: str = "default") -> str:
    headers = {"OpenAI-Organization": tenant}
    return str((await client.post("/generate", json={"text": "a red circle"}, headers=headers)).json()["id"])


async def one_of_each_state(client: httpx.AsyncClient, services: FakeServices) -> dict[str, str]:
    """Ids by state."""
    ids = {str(state): await make(client) for state in VIDEO_STATES}
    for state in (JobState.ENCODING, JobState.SAMPLING, JobState.DECODING, JobState.FAILED, JobState.CANCELLED):
        services.memory.move(ids[state], state)
    services.memory.complete(ids[JobState.COMPLETED])
    return ids


async def listed(client: httpx.AsyncClient, path: str, **params: object) -> list[str]:
    answer = await client.get(path, params={name: str(value) for name, value in params.items()})
    assert answer.status_code == 200, answer.text
    return [video["id"] for video in answer.json()["data"]]


async def refusal(client: httpx.AsyncClient, path: str, params: dict[str, str]) -> dict[str, Any]:
    answer = await client.get(path, params=params)
    assert answer.status_code == 400
    return dict(answer.json()["error"])


@LISTINGS
async def test_by_exact_state(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    ids = await one_of_each_state(client, services)
    for state in VIDEO_STATES:
        assert await listed(client, path, state=state) == [ids[state]]


@LISTINGS
async def test_by_openais_status(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    ids = await one_of_each_state(client, services)
    wanted = {
        "queued": ["queued"],
        "in_progress": ["encoding", "sampling", "decoding"],
        "completed": ["completed"],
        "failed": ["failed", "cancelled"],
    }
    for status, states in wanted.items():
        assert await listed(client, path, status=status, order="asc") == [ids[state] for state in states]


@LISTINGS
async def test_by_tenant(client: httpx.AsyncClient, path: str) -> None:
    made = {tenant: await make(client, tenant) for tenant in ("default", "acme", "acme2")}
    for tenant, video_id in made.items():
        assert await listed(client, path, tenant=tenant) == [video_id]
    assert await listed(client, path, tenant="nobody") == []


@LISTINGS
async def test_by_time_from_inclusive_to_exclusive(
    client: httpx.AsyncClient, services: FakeServices, path: str
) -> None:
    ids = [await make(client) for _ in range(4)]
    times = [services.memory.jobs[video_id].created_at for video_id in ids]
    assert await listed(client, path, created_after=times[1], order="asc") == ids[1:]
    assert await listed(client, path, created_before=times[1], order="asc") == ids[:1]
    assert await listed(client, path, created_after=int(times[1]), created_before=int(times[3])) == [ids[2], ids[1]]
    assert await listed(client, path, created_after=times[1] + 0.5, order="asc") == ids[2:]
    assert await listed(client, path, created_after=times[2], created_before=times[2]) == []


@LISTINGS
async def test_filters_hold_together_and_over_pages(
    client: httpx.AsyncClient, services: FakeServices, path: str
) -> None:
    ids = [await make(client, tenant) for tenant in ("a", "b") * 4]
    services.memory.move(ids[4], JobState.CANCELLED)
    first = (await client.get(path, params={"tenant": "a", "status": "queued", "limit": "2", "order": "asc"})).json()
    assert ([v["id"] for v in first["data"]], first["has_more"]) == ([ids[0], ids[2]], True)
    # What ended a page may have gone on since and match the filter no more; the page after it stands all the same.
    services.memory.move(first["last_id"], JobState.ENCODING)
    params = {"tenant": "a", "status": "queued", "limit": "2", "order": "asc", "after": first["last_id"]}
    second = (await client.get(path, params=params)).json()
    assert ([v["id"] for v in second["data"]], second["has_more"]) == ([ids[6]], False)


@LISTINGS
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("status", "encoding", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("status", "", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("state", "in_progress", "'queued', 'encoding', 'sampling', 'decoding', 'completed', 'failed' or 'cancelled'"),
        ("tenant", "a b", "It must be 1 to 64 of the characters"),
        ("tenant", "", "It must be 1 to 64 of the characters"),
        ("created_after", "yesterday", "number"),
        ("created_after", "nan", "number"),
        ("created_before", "-1", "greater than or equal to 0"),
        ("created_before", "1e999", "finite number"),
    ],
)
async def test_a_bad_filter_is_refused_by_name(
    client: httpx.AsyncClient, services: FakeServices, path: str, name: str, value: str, told: str
) -> None:
    error = await refusal(client, path, {name: value})
    assert (error["param"], error["code"]) == (name, "invalid_value")
    assert f"Invalid '{name}'" in error["message"]
    assert told in error["message"]
    assert set(services.memory.calls) <= {"poll_feed"}


@LISTINGS
async def test_status_and_state_say_the_same_thing(client: httpx.AsyncClient, path: str) -> None:
    error = await refusal(client, path, {"status": "queued", "state": "queued"})
    assert (error["param"], error["code"]) == ("status", "conflicting_parameters")


async def test_a_history_tells_every_move(client: httpx.AsyncClient, services: FakeServices) -> None:
    video_id = await make(client)
    services.memory.move(video_id, JobState.ENCODING)
    services.memory.move(video_id, JobState.FAILED, error=JobError("out_of_memory", "no room"))
    history = (await client.get(f"/v1/videos/{video_id}/history")).json()
    assert history["object"] == "list"
    moves = history["data"]
    assert [move["state"] for move in moves] == ["queued", "encoding", "failed"]
    assert [move["note"] for move in moves] == ["accepted", "encoding", "no room"]
    assert {(move["stage"], move["attempt"]) for move in moves} == {("encoding", 1)}
    times = [move["at"] for move in moves]
    assert times == sorted(times)


@pytest.mark.parametrize("video_id", ["video_" + "0" * 32, "nothing"])
async def test_no_history_of_nothing(client: httpx.AsyncClient, video_id: str) -> None:
    answer = await client.get(f"/v1/videos/{video_id}/history")
    assert answer.status_code == 404
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("video_id", "video_not_found")
