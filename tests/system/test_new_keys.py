"""API keys of a running server with several HTTP replicas: made and used at once, revoked, and those nobody made."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import psutil
import pytest

from serve_app.access.tenants import new_key
from serve_app.database import access as access_sql
from serve_app.database.connection import Database
from tests.support.servers.server import Server, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into other processes")

REPLICAS = 3
KEYS = 10
SETTINGS = {
    "MOCHI_SERVE__ACCESS__MODE": "keys",
    "MOCHI_SERVE__INGRESS__MIN_REPLICAS": str(REPLICAS),
    "MOCHI_SERVE__INGRESS__MAX_REPLICAS": str(REPLICAS),
    # Keys need no model.
    **{f"MOCHI_SERVE__{stage}__MIN_REPLICAS": "0" for stage in ("ENCODER", "SAMPLER", "DECODER")},
}


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("keyed"), SETTINGS, until="/health") as running:
        yield running


@pytest.fixture(scope="module")
def replicas(keyed_server: Server) -> Iterator[list[httpx.Client]]:
    """A client of each HTTP replica, past the front that would choose one."""

    def urls() -> list[str]:
        return [url for pid in keyed_server.pids("ingress") for url in _http_urls(pid)]

    wait_until(lambda: len(urls()) == REPLICAS, keyed_server.log_tail)
    clients = [httpx.Client(base_url=url, timeout=60) for url in urls()]
    yield clients
    for client in clients:
        client.close()


def _http_urls(pid: int) -> list[str]:
    """Where the process answers HTTP: it listens for calls of Ray, too."""
    listening = [each for each in psutil.Process(pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    found = []
    for port in {each.laddr.port for each in listening}:
        url = f"http://127.0.0.1:{port}"
        try:
            if httpx.get(f"{url}/health", timeout=10).headers.get("content-type") == "application/json":
                found.append(url)
        except httpx.TransportError:
            continue
    return found


def listed(client: httpx.Client, key: str) -> httpx.Response:
    return client.get("/v1/videos", params={"limit": 1}, headers={"Authorization": f"Bearer {key}"})


def in_database(server: Server, function: object, *args: object, **kwargs: object) -> object:
    """As `mochi-serve keys` does it, from another process than the server's."""
    with closing(Database(f"sqlite:///{server.data / 'jobs.db'}")) as database:
        return asyncio.run(database.run(function, *args, **kwargs))  # type: ignore[arg-type]


def make_key(server: Server) -> tuple[str, str]:
    """Its id and the key."""
    made = in_database(server, access_sql.create_key, "acme", label="", expires_at=None, now=time.time())
    kept, key = made  # type: ignore[misc]
    return kept.id, key  # type: ignore[has-type]


def test_a_new_key_is_good_at_once_at_every_replica(keyed_server: Server, replicas: list[httpx.Client]) -> None:
    for number in range(KEYS):
        _, key = make_key(keyed_server)
        told = [listed(client, key) for client in replicas[number % REPLICAS :] + replicas[: number % REPLICAS]]
        assert [answer.status_code for answer in told] == [200] * REPLICAS, told[0].text


def test_one_that_nobody_made_is_refused_by_every_replica(replicas: list[httpx.Client]) -> None:
    for client in replicas:
        answer = listed(client, new_key())
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_revoked_key_ends_at_every_replica(keyed_server: Server, replicas: list[httpx.Client]) -> None:
    """While keys that nobody made are tried all the time."""
    key_id, key = make_key(keyed_server)
    assert [listed(client, key).status_code for client in replicas] == [200] * REPLICAS
    in_database(keyed_server, access_sql.revoke_key, key_id, now=time.time())
    for client in replicas:

        def refused(client: httpx.Client = client) -> bool:
            listed(client, new_key())
            return "revoked_api_key" in listed(client, key).text

        wait_until(refused, keyed_server.log_tail)
