"""The same jobs by the routes of other servers, so that their clients find them here.

`/v1/videos/sync` is vllm-omni's and GPUStack's: it answers with the mp4. `/v1/videos/generations` is what gateways and
Tenstorrent's server have. OpenRouter's `/v1/videos/models` is beside `/v1/models`.
"""

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from serve_app.errors import ApiError, VideoFailedError, VideoNotReadyError, VideoUnfinishedError
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.request_trace import request_trace
from serve_app.ingress.routes import videos
from serve_app.ingress.routes.content import GET_DOCS, HEAD_DOCS, download_content
from serve_app.ingress.routes.short_routes import CREATED_RESPONSES
from serve_app.ingress.services import services_of
from serve_app.jobs import Job, JobState
from serve_app.openapi.errors import CREATE_ERRORS, SYNC_ERRORS, error_responses
from serve_app.openapi.media import sync_response
from serve_app.openapi.schemas import Video

VIDEO_ID_HEADER = "x-video-id"
# A client that sends the request again makes a second video, where it could ask for the first.
_NO_RETRY = {"x-should-retry": "false"}

router = APIRouter(tags=["dialects"])

_SYNC_DOCS: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: sync_response(videos.ACCEPTED_HEADERS), **error_responses(*CREATE_ERRORS, *SYNC_ERRORS)},
}


@router.post("/v1/videos/sync", **_SYNC_DOCS)
async def create_video_sync(request: Request, caller: AuthenticatedCaller) -> Response:
    """Make a video and answer with its mp4, however long that takes: give proxies on the way a long time.

    The job is like any other: it goes on if the client goes away or the time is over, and has an id to ask about.
    """
    services = services_of(request)
    checked = services.checks.create.check(await videos.read_body(request))
    accepted = await services.submit(checked, caller, request_trace(request))
    job = await services.final_job(accepted.job.id, caller, services.settings.ingress.sync_timeout_s)
    if job.state is not JobState.COMPLETED:
        raise _unmade(job)
    answer = await download_content(request, caller, job.id, redirect=False)
    answer.headers.update(videos.accepted_headers(accepted) | _sync_headers(job))
    return answer


def _unmade(job: Job) -> ApiError:
    headers = _NO_RETRY | {VIDEO_ID_HEADER: job.id}
    if not job.final:
        return VideoUnfinishedError(
            f"The video {job.id} is {job.state}, {job.progress:.0%} done, and goes on. Ask for it with GET "
            f"/v1/videos/{job.id}, or cancel it.",
            headers=headers | {"Location": f"/v1/videos/{job.id}"},
        )
    code, reason = (job.error.code, job.error.message) if job.error else (str(job.state), "no reason is known")
    kind = VideoNotReadyError if job.state is JobState.CANCELLED else VideoFailedError
    return kind(f"The video {job.id} is {job.state}: {reason}", code=code, headers=headers)


def _sync_headers(job: Job) -> dict[str, str]:
    """vllm-omni's names; the request's id is on every answer."""
    return {
        VIDEO_ID_HEADER: job.id,
        "x-model": job.model,
        "x-inference-time-s": f"{job.device_s:.3f}",
        "x-stage-durations": json.dumps(job.seconds, separators=(",", ":")),
    }


_GENERATION = "/v1/videos/generations/{video_id}"


@router.post("/v1/videos/generations", status_code=202, responses=CREATED_RESPONSES)
async def create_generation(
    request: Request, response: Response, caller: AuthenticatedCaller, prefer: videos.Prefer = None
) -> Video:
    """Accept a video to be made; answers at once with its id, before any work."""
    video = await videos.create_video(request, response, caller, prefer)
    response.headers["Location"] = f"/v1/videos/generations/{video.id}"
    return video


router.get(_GENERATION, name="retrieve_generation", responses=videos.RETRIEVE_RESPONSES)(videos.retrieve_video)
router.get(f"{_GENERATION}/download", name="download_generation", **GET_DOCS)(download_content)
router.head(f"{_GENERATION}/download", name="probe_download_generation", **HEAD_DOCS)(download_content)
router.post(f"{_GENERATION}/cancel", name="cancel_generation", responses=videos.CANCEL_RESPONSES)(videos.cancel_video)
