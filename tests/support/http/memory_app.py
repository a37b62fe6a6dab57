"""The app over services in memory, behind a real HTTP server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

import uvicorn
from PIL import Image

from deployments.settings import LoraSettings
from serve_app.access.tenants import AccessTable, ApiKey, Tenant, key_hash, key_hint, new_key
from serve_app.config import AccessSettings, SchedulingSettings
from serve_app.feed.publisher import FeedPublisher
from serve_app.ingress.app import create_app
from serve_app.jobs import Job, Tier
from tests.support.http.fakes import FakeServices, shapes_settings
from tests.support.servers.ports import free_ports


@dataclass(frozen=True)
class MemoryApp:
    """A running app. key: an API key that it knows."""

    url: str
    services: FakeServices
    key: str

    def completed(self, job_id: str) -> Job:
        """Complete a job, with a poster to be seen."""
        self.services.add_file(job_id, "thumbnail", picture())
        return self.services.memory.complete(job_id)


@asynccontextmanager
async def running_app(
    keys: bool = False, loras: Mapping[str, LoraSettings] = {}, draft_when_wait_over_s: float | None = None
) -> AsyncIterator[MemoryApp]:
    """keys: whether it refuses requests without one. loras: that requests may name."""
    plain = shapes_settings()
    access = AccessSettings(mode="keys" if keys else "auto")
    model = plain.model.model_copy(update={"loras": dict(loras)})
    scheduling = SchedulingSettings(draft_when_wait_over_s=draft_when_wait_over_s)
    settings = plain.model_copy(update={"access": access, "model": model, "scheduling": scheduling})
    services, key = FakeServices(settings), new_key()
    services.memory.announce_all()
    services.memory.feed = FeedPublisher(access=_access(key))
    (port,) = free_ports(1)
    # Streams of events end when their readers leave; here they need not.
    config = uvicorn.Config(create_app(services), "127.0.0.1", port, log_level="critical", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield MemoryApp(f"http://127.0.0.1:{port}", services, key)
    finally:
        server.should_exit = True
        await serving


def picture() -> bytes:
    """A WebP."""
    file = BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "WEBP")
    return file.getvalue()


def _access(key: str) -> AccessTable:
    # No more than its highest tier may be asked for.
    tenant = Tenant("studio", Tier.STANDARD, "whsec_", 0.0)
    known = ApiKey("key_1", tenant.name, key_hash(key), key_hint(key), "the page", 0.0)
    return AccessTable(1, {tenant.name: tenant}, {known.hash: known})
