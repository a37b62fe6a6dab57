"""The app of the proteins in this process, as a client sees it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from deployments.embedder.messages import DeviceInfo
from deployments.embedder.settings import ProteinSettings
from deployments.proteins.esm2 import Esm2
from deployments.replica.registry_link import Link
from serve_app.access.tenants import AccessTable
from serve_app.calls.breaker import BreakerRules
from serve_app.calls.devices import CallTiming, Devices
from serve_app.config import AccessSettings
from serve_app.feed.access_follower import AccessFollower
from serve_app.proteins.app import create_protein_app
from serve_app.proteins.files.jobs import ProteinJobs
from serve_app.proteins.requests import ProteinRequestChecker
from serve_app.proteins.routes import ProteinServices
from serve_app.proteins.service import ProteinService
from serve_app.registry_api import RegistryClient
from tests.support.http.fakes import MemoryRegistry, shapes_settings
from tests.support.proteins.devices import FakeDevice, FakeHandle, fake_devices
from tests.support.waiting import until
from tests.support.workers.memory_store import MemoryStore

LASTING = BreakerRules(failures=3, first_pause_s=600, longest_pause_s=600)
TIMING = CallTiming(answer_s=30, choice_s=0.5, describe_every_s=0.02, describe_s=1, silent_s=0.1)
NAME = "ProteinEmbedder"


@dataclass(frozen=True)
class ProteinApi:
    """A running app and its devices."""

    client: httpx.AsyncClient
    devices: list[FakeDevice]
    handle: FakeHandle
    service: ProteinService
    known: Devices[DeviceInfo]
    app: FastAPI
    registry: MemoryRegistry
    store: MemoryStore

    async def post(self, path: str, status: int = 200, **fields: Any) -> Any:
        """The answer's JSON to these fields."""
        answer = await self.client.post(path, json=fields)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def forget_all(self) -> None:
        """No device is left."""
        self.handle.devices.clear()
        await until(lambda: not self.known.known)


@asynccontextmanager
async def running_api(
    model: Esm2,
    count: int = 4,
    access: AccessTable | None = None,
    info: Mapping[str, Any] | None = None,
    link: Link | None = None,
    **settings: Any,
) -> AsyncIterator[ProteinApi]:
    """An app over these devices.

    Args:
        access: tenants and keys, which are needed then.
        info: of each device.
        link: to another registry than one in memory.
        settings: of the section `proteins`.
    """
    proteins = ProteinSettings(source="tests", name="tiny", **settings)
    whole = shapes_settings().model_copy(
        update={"proteins": proteins, "access": AccessSettings(mode="auto" if access is None else "keys")}
    )
    registry = MemoryRegistry()
    registry.feed.access = access or AccessTable(1, {}, {})
    fakes = fake_devices(model, count, **(info or {}))
    handle = FakeHandle(NAME, fakes)
    devices: Devices[DeviceInfo] = Devices("proteins", NAME, lambda: handle, "answer", TIMING, LASTING)
    service = ProteinService(proteins, devices)
    services = ProteinServices(proteins, 5.0, ProteinRequestChecker(proteins.served_name), devices, service, count)
    client_of_registry = RegistryClient(registry if link is None else link)
    store = MemoryStore()
    feed = AccessFollower(client_of_registry)
    jobs = ProteinJobs(whole, client_of_registry, store, feed, proteins=proteins, service=service)
    app = create_protein_app(services, jobs)
    async with app.router.lifespan_context(app):
        await until(lambda: len(devices.known) == count)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield ProteinApi(client, fakes, handle, service, devices, app, registry, store)
    await asyncio.sleep(0)
