"""The HTTP side of the proteins: an app of its own below /esm2, behind the keys, limits and guards of the videos."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

from deployments.background import keep_running
from deployments.embedder.messages import DeviceInfo
from deployments.embedder.settings import ProteinSettings
from deployments.logs.lines import begin_log
from deployments.logs.masking import secrets_of
from deployments.metrics.push import push_forever
from deployments.replica.registry_link import RegistryLink
from deployments.storage.object_store import ObjectStore
from deployments.watchdog.heartbeat import watch_this_process
from serve_app.calls.devices import CallTiming, Devices
from serve_app.config import AppSettings
from serve_app.feed.access_follower import AccessFollower
from serve_app.ingress.authentication import install_authentication
from serve_app.ingress.error_answers import install_error_handlers
from serve_app.ingress.event_stream import shut_down_when_draining
from serve_app.ingress.guards import install_guards
from serve_app.ingress.head_routes import head_routes
from serve_app.ingress.routes.metrics import RequestCounts
from serve_app.openapi.document import Document, DocumentText, RequestBodies, install_document
from serve_app.proteins.files.jobs import ProteinJobs
from serve_app.proteins.files.routes import router as job_router
from serve_app.proteins.requests import BatchRequest, PredictRequest, ProteinRequestChecker
from serve_app.proteins.routes import ProteinServices, router
from serve_app.proteins.service import APPLICATION, EMBEDDER, ProteinService
from serve_app.registry_api import RegistryClient
from serve_app.requests.body import CONTENT_TYPES

PREFIX = "/esm2"
ROLE = "protein_ingress"
log = logging.getLogger("ray.serve")

DESCRIPTION = """
Protein embeddings, contacts and scores by ESM2. Sequences of a batch are computed side by side on all devices; what
one gets does not depend on what is beside it. Many numbers are best fetched as arrays: Accept `application/x-npz` or
`application/x-safetensors`. All errors are OpenAI's envelope; a sequence of a batch has its own.
""".strip()
TAGS = [
    {"name": "proteins", "description": "Sequences of amino acids, as JSON or FASTA"},
    {"name": "jobs", "description": "FASTA files of up to a million sequences, answered in parts"},
]
EXAMPLE = "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG"


def create_protein_app(services: ProteinServices, jobs: ProteinJobs, loopback_only: bool = False) -> FastAPI:
    """All routes over these services. Needs no Ray.

    Args:
        loopback_only: only this machine reaches the server.
    """
    routes = [*router.routes, *job_router.routes]
    app = FastAPI(
        title="mochi-serve proteins",
        version="1",
        summary="ESM2 protein embeddings, contacts and scores",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lambda _: _running(services, jobs),
        routes=[*routes, *head_routes(routes)],
    )
    app.state.services = services
    app.state.jobs = jobs
    install_error_handlers(app)
    schemas: dict[str, type[BaseModel]] = {"predict": PredictRequest, "predict_batch": BatchRequest}
    install_document(app, _text(), jobs.keys_needed, RequestBodies(schemas, CONTENT_TYPES, []))
    install_guards(app, jobs.settings, loopback_only)
    install_authentication(app, jobs, on_answer=RequestCounts(app.routes, PREFIX).count)
    return app


def _text() -> DocumentText:
    return DocumentText(
        description=DESCRIPTION,
        tags=TAGS,
        servers=[{"url": PREFIX, "description": "this server"}],
        schemas={},
        answers=lambda: (),
        body_examples=_body_examples,
        parameters={},
    )


def _body_examples(schema: type[BaseModel]) -> Document:
    least: Document = {"sequence": EXAMPLE} if schema is PredictRequest else {"sequences": [EXAMPLE, "MGSSHHHHHH"]}
    more = {"layers": [-1], "pooling": ["mean", "per_residue"], "contacts": True}
    scores = {"mutations": ["K2A", "T3G:V4L"], "scoring": "masked_marginals"}
    return {
        "least": {"summary": "the mean embedding of the last layer", "value": least},
        "more": {"summary": "per residue, and contacts", "value": least | more},
        "scores": {"summary": "how likely mutations are", "value": {**least, **scores}},
    }


@asynccontextmanager
async def _running(services: ProteinServices, jobs: ProteinJobs) -> AsyncIterator[None]:
    push = partial(push_forever, jobs.registry.push_metrics, ROLE)
    tasks = [
        asyncio.create_task(keep_running(jobs.feed.run, "the keys", log)),
        asyncio.create_task(keep_running(services.devices.run, "the devices", log)),
        asyncio.create_task(keep_running(push, "the metrics", log)),
        asyncio.create_task(keep_running(lambda: shut_down_when_draining(jobs.feed), "the wait for the end", log)),
    ]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@serve.deployment
@serve.ingress()
class ProteinIngress:
    """A replica of the HTTP side.

    Args:
        settings: with the store's endpoint and keys filled in.
        proteins: their part of it.
        registry: name of the job registry's actor.
        loopback_only: only this machine reaches the server.
        logical_devices: replicas of the model that are wanted.
        embedder: handle of the model's deployment.
        files: handle of the deployment that works on files; the registry calls it.
    """

    def __init__(
        self,
        settings: AppSettings,
        proteins: ProteinSettings,
        registry: str,
        loopback_only: bool,
        logical_devices: int,
        embedder: Any,
        files: Any,
    ) -> None:
        self._watched = watch_this_process()
        begin_log(settings.logging, ROLE, secrets_of(settings))
        self._loopback_only = loopback_only
        self._files = files
        client = RegistryClient(RegistryLink(registry, settings.namespace))
        devices: Devices[DeviceInfo] = Devices(
            APPLICATION, EMBEDDER, lambda: embedder, "answer", CallTiming(answer_s=proteins.group_timeout_s)
        )
        self._services = ProteinServices(
            settings=proteins,
            body_timeout_s=settings.ingress.body_timeout_s,
            checks=ProteinRequestChecker(proteins.served_name),
            devices=devices,
            service=ProteinService(proteins, devices),
            logical_devices=logical_devices,
        )
        self._jobs = ProteinJobs(
            settings,
            client,
            ObjectStore(settings.storage),
            AccessFollower(client),
            proteins=proteins,
            service=self._services.service,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_protein_app(self._services, self._jobs, self._loopback_only)
