"""The HTTP side: one FastAPI app over the job registry and the store of videos. It holds no model.

Ray Serve itself gives each request an id (the client's own X-Request-Id, or a new one), answers with it and puts it
into the log lines; nothing is added here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve

from deployments.background import keep_running
from deployments.logs.lines import begin_log
from deployments.logs.masking import secrets_of
from deployments.metrics import names
from deployments.metrics.push import push_forever
from deployments.metrics.recorder import RECORDER
from deployments.replica.registry_link import RegistryLink
from deployments.storage.object_store import ObjectStore
from deployments.tracing.tracer import TRACER
from deployments.watchdog.heartbeat import watch_this_process
from serve_app.config import AppSettings
from serve_app.feed.follower import FeedFollower
from serve_app.ingress.authentication import install_authentication
from serve_app.ingress.error_answers import install_error_handlers
from serve_app.ingress.event_stream import shut_down_when_draining
from serve_app.ingress.guards import install_guards
from serve_app.ingress.head_routes import head_routes
from serve_app.ingress.request_trace import end_request_trace
from serve_app.ingress.routes import content, dialects, events, metrics, short_routes, videos
from serve_app.ingress.routes.metrics import RequestCounts
from serve_app.ingress.routes.web_page import WebPage
from serve_app.ingress.services import Services
from serve_app.openapi.document import RequestBodies, install_document, video_text
from serve_app.prompts.safety import PromptSafety, classify_with
from serve_app.prompts.tokens import load_token_counter
from serve_app.registry_api import RegistryClient
from serve_app.requests import deadlines
from serve_app.requests.body import CONTENT_TYPES

log = logging.getLogger("ray.serve")


def create_app(services: Services, loopback_only: bool = False) -> FastAPI:
    """All routes over these services. Needs no Ray.

    Args:
        loopback_only: only this machine reaches the server.
    """
    # Not included as routers, which FastAPI matches more slowly. They are tried in this order.
    routes = [
        *videos.router.routes,
        *events.router.routes,
        *content.router.routes,
        *dialects.router.routes,
        *short_routes.router.routes,
        *metrics.router.routes,
        *short_routes.unsupported.routes,
    ]
    app = FastAPI(
        title="mochi-serve",
        version="1",
        summary="Text to video with an OpenAI-compatible API",
        # FastAPI's pages of documentation load scripts from a CDN.
        docs_url=None,
        redoc_url=None,
        # A path with a slash too many is no route.
        redirect_slashes=False,
        lifespan=lambda _: _running(services),
        routes=[*routes, *WebPage(services.settings.model).routes, *head_routes(routes)],
    )
    app.state.services = services
    install_error_handlers(app)
    bodies = RequestBodies(services.checks.schemas, CONTENT_TYPES, [deadlines.HEADER_DOCS])
    install_document(app, video_text(services.settings), services.keys_needed, bodies)
    install_guards(app, services.settings, loopback_only)
    # Last, and so outermost: the guards answer errors that nobody foresaw, and those too have the rate limit's headers.
    counts = RequestCounts(app.routes)
    install_authentication(app, services, on_answer=counts.count, on_end=end_request_trace)
    return app


@asynccontextmanager
async def _running(services: Services) -> AsyncIterator[None]:
    """What runs in the background for as long as the app does."""
    feed = services.feed
    tasks = [
        asyncio.create_task(keep_running(feed.run, "the feed", log)),
        asyncio.create_task(keep_running(lambda: _push_metrics(services), "the metrics", log)),
        asyncio.create_task(keep_running(lambda: shut_down_when_draining(feed), "the wait for the end", log)),
    ]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _push_metrics(services: Services) -> None:
    """Tell the registry what this replica counts."""

    def look() -> None:
        RECORDER.set(names.FEED_LAG, services.feed.lag_s)

    await push_forever(services.registry.push_metrics, "ingress", look=look)


@serve.deployment
@serve.ingress()
class Ingress:
    """A replica of the HTTP side.

    Args:
        settings: with the store's endpoint and keys filled in.
        registry: name of the job registry's actor.
        loopback_only: only this machine reaches the server.
        classifier: handle of the deployment that judges prompts, if the settings have one.
    """

    def __init__(self, settings: AppSettings, registry: str, loopback_only: bool, classifier: Any = None) -> None:
        self._watched = watch_this_process()
        begin_log(settings.logging, "ingress", secrets_of(settings))
        TRACER.start(settings.tracing, "ingress")
        self._loopback_only = loopback_only
        client = RegistryClient(RegistryLink(registry, settings.namespace))
        self._services = Services(
            settings=settings,
            registry=client,
            feed=FeedFollower(client),
            store=ObjectStore(settings.storage),
            count_tokens=load_token_counter(settings.model.source),
            safety=PromptSafety(settings.safety, None if classifier is None else classify_with(classifier)),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._services, self._loopback_only)
