"""A real store behind a gate that refuses, or takes requests and says nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from deployments.errors import StorageRefusedError, StorageUnavailableError
from deployments.settings import StorageSettings
from deployments.storage.object_store import THREADS, ObjectStore
from tests.support.servers.store_gate import StoreGate, store_gate
from tests.support.waiting import until


@pytest.fixture
def gate(storage_settings: StorageSettings) -> Iterator[StoreGate]:
    assert storage_settings.endpoint is not None
    with store_gate(int(storage_settings.endpoint.rpartition(":")[2])) as made:
        yield made


@pytest.fixture
async def gated(storage_settings: StorageSettings, gate: StoreGate) -> AsyncIterator[ObjectStore]:
    """The store through the gate."""
    store = ObjectStore(storage_settings.model_copy(update={"endpoint": f"127.0.0.1:{gate.port}"}))
    await store.put("held", b"all of it", "text/plain")
    yield store
    store.close()


async def _download(store: ObjectStore) -> bytes:
    return b"".join([chunk async for chunk in store.stream("held")])


async def test_the_health_of_a_store_that_hangs_is_told_while_all_else_waits_for_it(
    gate: StoreGate, gated: ObjectStore
) -> None:
    gate.be_silent()
    requests = [asyncio.create_task(gated.stat("held")) for _ in range(2 * THREADS)]
    downloads = [asyncio.create_task(_download(gated)) for _ in range(2 * THREADS)]
    await until(lambda: gate.taken >= 2 * THREADS)
    for answer in await asyncio.gather(*(gated.ping() for _ in range(20)), return_exceptions=True):
        assert isinstance(answer, StorageUnavailableError)
    assert not any(task.done() for task in (*requests, *downloads))
    # The threads of the loop are free for all else that blocks.
    assert await asyncio.to_thread(lambda: "ran") == "ran"
    gate.pass_on()
    await asyncio.gather(*requests, *downloads, return_exceptions=True)
    await gated.ping()


async def test_downloads_that_hang_take_no_thread_of_other_requests(gate: StoreGate, gated: ObjectStore) -> None:
    gate.be_silent()
    downloads = [asyncio.create_task(_download(gated)) for _ in range(2 * THREADS)]
    await until(lambda: gate.taken >= THREADS)
    one = asyncio.create_task(gated.get("held"))
    await until(lambda: gate.taken > THREADS)
    gate.pass_on()
    await asyncio.gather(one, *downloads, return_exceptions=True)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "InvalidAccessKeyId", StorageRefusedError),
        (403, "RequestTimeTooSkewed", StorageRefusedError),
        (400, "ExpiredToken", StorageRefusedError),
        (429, "TooManyRequests", StorageUnavailableError),
    ],
)
async def test_a_refusal_may_pass(
    gate: StoreGate, gated: ObjectStore, status: int, code: str, kind: type[StorageUnavailableError]
) -> None:
    gate.refuse(status, code)
    for asked in (gated.get("held"), gated.put("other", b"x", "text/plain"), gated.list_keys("held"), gated.ping()):
        with pytest.raises(StorageUnavailableError) as caught:
            await asked
        assert str(gate.port) not in caught.value.message and code not in caught.value.message
        assert isinstance(caught.value, kind)
    gate.pass_on()
    assert await gated.get("held") == b"all of it"
    await gated.ping()
