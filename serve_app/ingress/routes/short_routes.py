"""The short routes for people and scripts, /health and /ready.

OpenAI's routes for what Mochi cannot do: a clear refusal, where a 404 would look like a wrong address.
"""

import asyncio
import logging
from typing import Any, NoReturn

from fastapi import APIRouter, Request, Response

from deployments.errors import WorkerError
from serve_app.errors import InvalidRequestError
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.error_answers import RETRY_AFTER_S
from serve_app.ingress.routes import videos
from serve_app.ingress.routes.content import GET_DOCS, HEAD_DOCS, download_content
from serve_app.ingress.services import Services, services_of
from serve_app.openapi.errors import (
    CREATE_ERRORS,
    REGISTRY_UNAVAILABLE,
    UNSUPPORTED_OPERATION,
    WRITE_ERRORS,
    Responses,
    error_responses,
)
from serve_app.openapi.schemas import ErrorEnvelope, HealthReport, Video
from serve_app.openapi.status import ServerStatus, to_status
from serve_app.openapi.views import to_health

log = logging.getLogger("ray.serve")

router = APIRouter(tags=["short"])

router.routes.append(videos.PlainRead("/status/{video_id}", videos.retrieve_plainly))
router.get("/status/{video_id}", name="status", responses=videos.RETRIEVE_RESPONSES)(videos.retrieve_video)
router.get("/jobs", name="jobs", responses=videos.LIST_RESPONSES)(videos.list_videos)
router.post("/cancel/{video_id}", name="cancel", responses=videos.CANCEL_RESPONSES)(videos.cancel_video)
router.get("/download/{video_id}", name="download", **GET_DOCS)(download_content)
router.head("/download/{video_id}", name="probe_download", **HEAD_DOCS)(download_content)

_LOCATION_DOCS = {"Location": {"description": "where to ask about it", "schema": {"type": "string"}}}
CREATED_RESPONSES: Responses = {
    202: {"description": "The video, accepted", "headers": videos.ACCEPTED_HEADERS | _LOCATION_DOCS},
    **error_responses(*CREATE_ERRORS),
}


@router.post("/generate", status_code=202, responses=CREATED_RESPONSES)
async def generate(
    request: Request, response: Response, caller: AuthenticatedCaller, prefer: videos.Prefer = None
) -> Video:
    """Accept a video to be made; answers at once with its id, before any work."""
    services = services_of(request)
    checked = services.checks.generate.check(await videos.read_body(request))
    video = await videos.submit(request, checked, caller, response, prefer)
    response.headers["Location"] = f"/status/{video.id}"
    return video


def _health_responses(unready: str) -> Responses:
    """503 comes with the report of what is missing, or with an error if even that is unknown."""
    responses = error_responses(REGISTRY_UNAVAILABLE, needs_key=False)
    description = f"{unready}, and what is missing; an ErrorEnvelope if even that cannot be told"
    responses[503] |= {"model": HealthReport | ErrorEnvelope, "description": description}
    # FastAPI writes the model's in its place.
    del responses[503]["content"]["application/json"]["schema"]
    return responses


@router.get("/health", responses=_health_responses("No videos are accepted now"))
async def health(request: Request, response: Response) -> HealthReport:
    """Tell whether videos are accepted: 503 unless the stores work; replicas may still be starting."""
    return await _report(request, response, must_be_ready=False)


@router.get("/ready", responses=_health_responses("No videos can be made now"))
async def ready(request: Request, response: Response) -> HealthReport:
    """Tell whether videos can be made now: 503 until each stage has a replica and the stores work."""
    return await _report(request, response, must_be_ready=True)


@router.get("/v1/status", name="server_status", responses=error_responses(REGISTRY_UNAVAILABLE))
async def server_status(request: Request, caller: AuthenticatedCaller) -> ServerStatus:
    """Tell what waits, by stage, tier and tenant, and what the replicas work on; with a key, of its tenant alone."""
    services = services_of(request)
    tenant = None if caller.key_tenant is None else caller.tenant
    return to_status(await services.activity(), services.unix_time(), tenant)


async def _report(request: Request, response: Response, must_be_ready: bool) -> HealthReport:
    services = services_of(request)
    jobs, storage = await asyncio.gather(services.health(), _storage_health(services))
    if jobs.database_detail:
        log.warning(f"the health of the database: {jobs.database}: {jobs.database_detail}")
    report = to_health(jobs, storage, must_be_ready)
    if report.error is not None:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return report


async def _storage_health(services: Services) -> str:
    """ "ok", or what is wrong with the store."""
    try:
        await services.store.ping()
    except WorkerError as error:
        log.warning(f"the health of the object store: {error}")
        return error.message
    return "ok"


unsupported = APIRouter(tags=["unsupported"])

_REFUSED: dict[str, Any] = {"status_code": 400, "response_model": ErrorEnvelope}
_REFUSED_POST = _REFUSED | {"responses": error_responses(UNSUPPORTED_OPERATION, *WRITE_ERRORS)}
_REFUSED_GET = _REFUSED | {"responses": error_responses(UNSUPPORTED_OPERATION)}


@unsupported.post("/v1/videos/edits", **_REFUSED_POST)
async def post_edits(caller: AuthenticatedCaller) -> NoReturn:
    """Not supported by this model: answered with 400."""
    _refuse("edit a video; remix it with another prompt: POST /v1/videos/{video_id}/remix")


@unsupported.post("/v1/videos/extensions", **_REFUSED_POST)
async def post_extensions(caller: AuthenticatedCaller) -> NoReturn:
    """Not supported by this model: answered with 400."""
    _refuse("extend a video; ask for a longer one with 'seconds' or 'num_frames'")


@unsupported.post("/v1/videos/characters", **_REFUSED_POST)
async def post_characters(caller: AuthenticatedCaller) -> NoReturn:
    """Not supported by this model: answered with 400."""
    _refuse("keep characters; describe them in the prompt")


@unsupported.get("/v1/videos/characters/{character_id}", **_REFUSED_GET)
async def get_characters(character_id: str, caller: AuthenticatedCaller) -> NoReturn:
    """Not supported by this model: answered with 400."""
    _refuse("keep characters; describe them in the prompt")


def _refuse(operation: str) -> NoReturn:
    raise InvalidRequestError(f"This model cannot {operation}.", None, "unsupported_operation")
