"""A key that was made a moment ago is let in by a replica that was not told of it yet."""

from dataclasses import replace

import httpx

from serve_app.access.tenants import AccessTable, ApiKey, key_hash, key_hint, new_key
from tests.support.http.fakes import FakeServices
from tests.support.http.keyed_services import keyed_services
from tests.support.http.memory_http import fed_client


def made(services: FakeServices, key: str) -> AccessTable:
    """The tenants and keys with one more."""
    before = services.memory.feed.access
    assert before is not None
    entry = ApiKey("key_new", "acme", key_hash(key), key_hint(key), "", 0.0)
    return replace(before, version=before.version + 1, keys={**before.keys, entry.hash: entry})


async def listed(client: httpx.AsyncClient, key: str) -> httpx.Response:
    return await client.get("/v1/videos", headers={"Authorization": f"Bearer {key}"})


async def test_it_is_let_in_at_once() -> None:
    services, _ = keyed_services("acme")
    async with fed_client(services) as client:
        key = new_key()
        services.memory.unread_access = made(services, key)
        assert (await listed(client, key)).status_code == 200
        assert (await listed(client, key)).status_code == 200
        assert services.memory.calls["refresh_access"] == 1


async def test_what_is_no_key_is_not_asked_for() -> None:
    services, headers = keyed_services("acme")
    async with fed_client(services) as client:
        for key in ("sk-123", "ms-short"):
            assert (await listed(client, key)).status_code == 401
        assert (await client.get("/v1/videos", headers=headers["acme"])).status_code == 200
        assert services.memory.calls["refresh_access"] == 0


async def test_one_that_nobody_made_is_refused() -> None:
    services, _ = keyed_services("acme")
    async with fed_client(services) as client:
        key = new_key()
        for _ in range(3):
            answer = await listed(client, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert services.memory.calls["refresh_access"] == 1


async def test_while_nobody_can_say_it_is_not_called_wrong() -> None:
    services, _ = keyed_services("acme")
    async with fed_client(services) as client:
        services.memory.lost_calls["refresh_access"] = 1
        key = new_key()
        services.memory.unread_access = made(services, key)
        answer = await listed(client, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")
        assert (await listed(client, key)).status_code == 200
