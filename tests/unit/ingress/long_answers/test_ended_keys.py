"""An answer that goes on for long ends when its key does: revoked, expired, or with its tenant removed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import httpx
import pytest

from serve_app.access.tenants import AccessTable
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import fed_client
from tests.support.http.sse import read_events
from tests.support.waiting import until


@pytest.fixture
async def keyed() -> AsyncIterator[tuple[FakeServices, httpx.AsyncClient, dict[str, dict[str, str]]]]:
    """Services, a client, and the headers of two tenants."""
    services, headers = keyed_services("acme", "globex")
    async with fed_client(services) as client:
        yield services, client, headers


Keyed = tuple[FakeServices, httpx.AsyncClient, dict[str, dict[str, str]]]
Change = Callable[[FakeServices], None]


def publish(services: FakeServices, change: Callable[[AccessTable], AccessTable]) -> None:
    """What the registry does when it sees that the keys have changed."""
    before = services.memory.feed.access
    assert before is not None
    services.memory.feed.publish_access(replace(change(before), version=before.version + 1))


def change_key(services: FakeServices, **changes: float) -> None:
    def changed(table: AccessTable) -> AccessTable:
        keys = {h: replace(key, **changes) if key.tenant == "acme" else key for h, key in table.keys.items()}  # type: ignore[arg-type]
        return replace(table, keys=keys)

    publish(services, changed)


def revoke(services: FakeServices) -> None:
    change_key(services, revoked_at=1.0)


def expire(services: FakeServices) -> None:
    change_key(services, expires_at=-1.0)


def forget(services: FakeServices) -> None:
    def without(table: AccessTable) -> AccessTable:
        return replace(table, keys={h: key for h, key in table.keys.items() if key.tenant != "acme"})

    publish(services, without)


def remove_tenant(services: FakeServices) -> None:
    def without(table: AccessTable) -> AccessTable:
        return replace(table, tenants={name: t for name, t in table.tenants.items() if name != "acme"})

    publish(services, without)


ENDS = pytest.mark.parametrize("end", [revoke, expire, forget, remove_tenant])


async def watched_video(keyed: Keyed, tenant: str, method: str, path: str) -> tuple[str, asyncio.Task[httpx.Response]]:
    """A video of the tenant, and an answer about it that goes on."""
    services, client, headers = keyed
    made = await client.post("/v1/videos", json={"prompt": "a red circle"}, headers=headers[tenant])
    video_id: str = made.json()["id"]
    asked = asyncio.create_task(client.request(method, path.format(video_id), headers=headers[tenant]))
    await until(lambda: video_id in services.feed.watched_jobs)
    return video_id, asked


@ENDS
async def test_a_stream_of_events_ends(keyed: Keyed, end: Change) -> None:
    services, client, headers = keyed
    _, ended = await watched_video(keyed, "acme", "GET", "/v1/videos/{}/events")
    other, other_stream = await watched_video(keyed, "globex", "GET", "/v1/videos/{}/events")
    end(services)
    answer = await ended
    assert answer.status_code == 200
    assert {event.name for event in read_events(answer.text)} <= {"state", "progress", "ping"}
    again = await client.get("/v1/videos", headers=headers["acme"])
    assert again.status_code == 401
    services.memory.complete(other)
    assert read_events((await other_stream).text)[-1].name == "done", "another tenant's stream goes on"


@ENDS
async def test_a_request_that_waits_is_refused(keyed: Keyed, end: Change) -> None:
    services, _, _ = keyed
    _, asked = await watched_video(keyed, "acme", "GET", "/v1/videos/{}?wait=60")
    end(services)
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")


@pytest.mark.parametrize(("path", "status"), [("/v1/videos/{}/events", 200), ("/v1/videos/{}?wait=60", 401)])
async def test_a_key_ends_in_the_second_that_it_expires(keyed: Keyed, path: str, status: int) -> None:
    """Nothing is told at that moment: whoever waits looks at the clock himself."""
    services, _, _ = keyed
    change_key(services, expires_at=4e9)
    services.now = 4e9 - 0.05
    _, asked = await watched_video(keyed, "acme", "GET", path)
    services.now = 4e9
    assert (await asked).status_code == status
