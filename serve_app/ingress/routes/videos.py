"""OpenAI's routes under /v1: the `openai` package works with them unchanged. Beside them: cancel, enhance, history.

The events of a video are in events.py, its files in content.py.
"""

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.routing import Match, Route
from starlette.types import Scope

from serve_app.access.tenants import Caller
from serve_app.errors import conflict
from serve_app.ingress.authentication import (
    CALLER_HEADERS,
    REPLAYED_DOCS,
    REPLAYED_HEADER,
    AuthenticatedCaller,
    TenantName,
    authenticate_by_key,
)
from serve_app.ingress.job_access import LONGEST_WAIT_S
from serve_app.ingress.request_trace import RESPONSE_HEADER, request_trace
from serve_app.ingress.services import services_of
from serve_app.jobs import Acceptance, Job, JobFilter, JobState, Order
from serve_app.openapi.errors import (
    CONFLICTING_PARAMETERS,
    CREATE_ERRORS,
    DERIVE_ERRORS,
    VIDEO_FINAL,
    VIDEO_NOT_FOUND,
    WRITE_ERRORS,
    Responses,
    error_responses,
)
from serve_app.openapi.media import TRACE_DOCS
from serve_app.openapi.schemas import DeletedVideo, ModelList, Status, Video, VideoHistory, VideoPage
from serve_app.openapi.views import states_of, to_history, to_model_list, to_page
from serve_app.requests import deadlines
from serve_app.requests.body import read_fields
from serve_app.requests.videos import CheckedRequest

POLL_HEADER = "openai-poll-after-ms"
# OpenAI's clients keep the interval of their first poll, so it must suit a video of a second and one of minutes.
POLL_AFTER_MS = 250
# How much may be asked for; it is answered after LONGEST_WAIT_S.
MAX_WAIT_S = 60
IGNORED_HEADER = "x-ignored-parameters"
APPLIED_HEADER = "preference-applied"
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)

_POLL_DOCS = {
    POLL_HEADER: {"description": "milliseconds, when to ask again; until it is final", "schema": {"type": "integer"}}
}
RETRIEVE_RESPONSES: Responses = {
    200: {"description": "The video as it is now", "headers": _POLL_DOCS},
    **error_responses(VIDEO_NOT_FOUND),
}
LIST_RESPONSES = error_responses(CONFLICTING_PARAMETERS)
CANCEL_RESPONSES = error_responses(VIDEO_NOT_FOUND, VIDEO_FINAL, *WRITE_ERRORS)
ACCEPTED_HEADERS: dict[str, Any] = REPLAYED_DOCS | {
    RESPONSE_HEADER: TRACE_DOCS,
    IGNORED_HEADER: {
        "description": "the fields of the request that were known and made no difference, as `a, b`",
        "schema": {"type": "string"},
    },
    APPLIED_HEADER: {
        "description": "`wait=N` if the request preferred to wait for the video, N seconds at most",
        "schema": {"type": "string"},
    },
}
_ACCEPTED: Responses = {200: {"description": "The video, accepted", "headers": ACCEPTED_HEADERS}}

UnixSeconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
WaitSeconds = Annotated[
    float,
    Query(
        ge=0,
        le=MAX_WAIT_S,
        allow_inf_nan=False,
        description="answer only when the video is final, or after so many seconds, "
        f"{LONGEST_WAIT_S:g} at most: before a proxy in between gives up",
    ),
]
Include = Annotated[Literal["preview"] | None, Query(description="what the video is to be told with")]
Prefer = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description=f"wait=N: answer when the video is final, or in N seconds, {LONGEST_WAIT_S:g} at most (RFC 7240)",
    ),
]


VideoState = Literal["queued", "encoding", "sampling", "decoding", "completed", "failed", "cancelled"]


class ListQuery(BaseModel):
    """Which videos a listing holds."""

    limit: int = Field(20, ge=1, le=100, description="how many at most")
    after: str | None = Field(None, description="id of the last video of the page before")
    order: Order = Field("desc", description="by the time of creation")
    status: Status | None = Field(None, description="OpenAI's; not together with state")
    state: VideoState | None = Field(None, description="the exact one; not together with status")
    tenant: TenantName | None = Field(
        None, description="whose videos; where keys are needed, the key's tenant whatever it says"
    )
    created_after: UnixSeconds | None = Field(None, description="Unix seconds, inclusive")
    created_before: UnixSeconds | None = Field(None, description="Unix seconds, exclusive")

    def job_filter(self) -> JobFilter:
        """Raises InvalidRequestError if both status and state are given."""
        if self.status is not None and self.state is not None:
            raise conflict("status", "state")
        states = (JobState(self.state),) if self.state else states_of(self.status) if self.status else ()
        return JobFilter(states, self.tenant, self.created_after, self.created_before)


class PlainRead(Route):
    """A route for the GETs of a path that give no parameters; all others go on to the declared route behind it.

    To solve declared parameters takes FastAPI longer than the rest of the answer, and nearly every poll gives none.
    """

    def __init__(self, path: str, read: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__(path, read, include_in_schema=False)
        self.methods = {"GET"}  # without HEAD, which Starlette adds: see head_routes.py

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is not Match.FULL or scope["query_string"] or any(h in CALLER_HEADERS for h, _ in scope["headers"]):
            return Match.NONE, {}
        return match, {**child_scope, "route": self}


# Routes are tried in this order: the one that is asked most comes first.
router = APIRouter(tags=["OpenAI"])


# Before the routes with an id, which would take `models` for one.
@router.get("/v1/models", responses=error_responses())
@router.get("/v1/videos/models", name="list_video_models", responses=error_responses())
async def list_models(request: Request, caller: AuthenticatedCaller) -> ModelList:
    """List the served model and what may be asked of it."""
    settings = services_of(request).settings
    return to_model_list(settings.model, settings.scheduling.draft_when_wait_over_s)


async def retrieve_plainly(request: Request) -> Response:
    """What `retrieve_video` answers without parameters."""
    services = services_of(request)
    job = await services.job(request.path_params["video_id"], await authenticate_by_key(request))
    return Response(services.video(job).model_dump_json(), 200, _poll_headers(job), "application/json")


router.routes.append(PlainRead("/v1/videos/{video_id}", retrieve_plainly))


@router.get("/v1/videos/{video_id}", responses=RETRIEVE_RESPONSES)
async def retrieve_video(
    request: Request,
    response: Response,
    video_id: str,
    caller: AuthenticatedCaller,
    wait: WaitSeconds = 0,
    include: Include = None,
) -> Video:
    """Tell the state of a video; until it is final, a header says how soon to ask again."""
    services = services_of(request)
    wait_s = 0 if request.method == "HEAD" else min(wait, services.timing.longest_wait_s)
    job = await services.final_job(video_id, caller, wait_s)
    response.headers.update(_poll_headers(job))
    video = services.video(job)
    if include and (picture := await services.preview(job)):
        video.preview = b64encode(picture).decode("ascii")
    return video


def _poll_headers(job: Job) -> dict[str, str]:
    return {} if job.final else {POLL_HEADER: str(POLL_AFTER_MS)}


@router.post("/v1/videos", responses=_ACCEPTED | error_responses(*CREATE_ERRORS))
async def create_video(
    request: Request, response: Response, caller: AuthenticatedCaller, prefer: Prefer = None
) -> Video:
    """Accept a video to be made; answers at once with its id, before any work."""
    services = services_of(request)
    checked = services.checks.create.check(await read_body(request))
    return await submit(request, checked, caller, response, prefer)


@router.post("/v1/videos/{video_id}/remix", responses=_ACCEPTED | error_responses(*DERIVE_ERRORS))
async def remix_video(
    request: Request, response: Response, caller: AuthenticatedCaller, video_id: str, prefer: Prefer = None
) -> Video:
    """Accept a video like another one, with the same seed and settings and a new prompt."""
    services = services_of(request)
    source = await services.job(video_id, caller)
    checked = services.checks.remix.check(await read_body(request), source)
    return await submit(request, checked, caller, response, prefer)


@router.post("/v1/videos/{video_id}/enhance", responses=_ACCEPTED | error_responses(*DERIVE_ERRORS))
async def enhance_video(
    request: Request, response: Response, caller: AuthenticatedCaller, video_id: str, prefer: Prefer = None
) -> Video:
    """Accept the same video in more denoising steps, with the same seed and prompt. The body may be left out."""
    services = services_of(request)
    source = await services.job(video_id, caller)
    checked = services.checks.enhance.check(await read_body(request), source)
    return await submit(request, checked, caller, response, prefer)


async def read_body(request: Request) -> dict[str, object]:
    """The fields of the body, unchecked, and what the header Cancel-After says; none without a body (RFC 9112, 6.3).

    Raises as `read_fields` and `deadlines.add_header` do.
    """
    fields: dict[str, object] = {}
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        bounds = services_of(request).settings.ingress
        fields = await read_fields(request, bounds.max_body_bytes, bounds.body_timeout_s)
    deadlines.add_header(fields, request.headers.getlist(deadlines.HEADER))
    return fields


async def submit(
    request: Request, checked: CheckedRequest, caller: Caller, response: Response, prefer: str | None
) -> Video:
    """Make a video, or find the one that an earlier request with the caller's idempotency key made.

    Args:
        response: gets the headers.
        prefer: the request's header.
    """
    services = services_of(request)
    accepted = await services.submit(checked, caller, request_trace(request))
    response.headers.update(accepted_headers(accepted))
    job = accepted.job
    if wait_s := min(preferred_wait(prefer), services.timing.longest_wait_s):
        response.headers[APPLIED_HEADER] = f"wait={wait_s:g}"
        job = await services.final_job(job.id, caller, wait_s)
    return services.video(job)


def accepted_headers(accepted: Acceptance) -> dict[str, str]:
    """What the headers of an answer tell of the request that it accepts."""
    headers = {RESPONSE_HEADER: accepted.job.trace.traceparent}
    if accepted.repeated:
        headers[REPLAYED_HEADER] = "true"
    if accepted.job.requested.ignored:
        headers[IGNORED_HEADER] = ", ".join(accepted.job.requested.ignored)
    return headers


def preferred_wait(prefer: str | None) -> int:
    """The seconds of `wait=N` in a header Prefer, at most MAX_WAIT_S; 0 if it names none. RFC 7240, 4.3."""
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), MAX_WAIT_S) if match else 0


@router.get("/v1/videos", responses=LIST_RESPONSES)
async def list_videos(request: Request, query: Annotated[ListQuery, Query()], caller: AuthenticatedCaller) -> VideoPage:
    """List videos by their time of creation."""
    services = services_of(request)
    page = await services.page(query.limit, query.after, query.order, query.job_filter(), caller)
    return to_page(page, services.settings.retention)


@router.delete("/v1/videos/{video_id}", responses=error_responses(VIDEO_NOT_FOUND, *WRITE_ERRORS))
async def delete_video(request: Request, video_id: str, caller: AuthenticatedCaller) -> DeletedVideo:
    """Delete a video with all its files; one that is being made is cancelled first."""
    await services_of(request).delete(video_id, caller)
    return DeletedVideo(id=video_id)


@router.post("/v1/videos/{video_id}/cancel", responses=CANCEL_RESPONSES)
async def cancel_video(request: Request, video_id: str, caller: AuthenticatedCaller) -> Video:
    """Stop the making of a video at its next step; 409 if it is completed or failed."""
    services = services_of(request)
    return services.video(await services.cancel(video_id, caller))


@router.get("/v1/videos/{video_id}/history", responses=error_responses(VIDEO_NOT_FOUND))
async def list_moves(request: Request, video_id: str, caller: AuthenticatedCaller) -> VideoHistory:
    """List the moves of a video from state to state, oldest first, with their reasons."""
    return to_history(await services_of(request).history(video_id, caller))
