"""The routes below /esm2/jobs: a FASTA file of any size becomes a job, and its answers are downloaded in parts."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field

from serve_app.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    NotFoundError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    VideoFinalError,
    VideoNotReadyError,
)
from serve_app.ingress.authentication import REPLAYED_HEADER, AuthenticatedCaller, TenantName
from serve_app.ingress.routes.content import file_headers, send_file
from serve_app.jobs import JobFilter, JobState, Order
from serve_app.openapi.errors import WRITE_ERRORS, Responses, error_responses
from serve_app.openapi.media import EVENT_DOCS
from serve_app.proteins.files.jobs import ProteinJobEvents, ProteinJobs
from serve_app.proteins.files.schemas import (
    DeletedProteinJob,
    ProteinHistory,
    ProteinJob,
    ProteinJobPage,
    to_move,
)
from serve_app.proteins.files.upload import FASTA_TYPES
from serve_app.proteins.requests import ProteinRequestChecker
from serve_app.proteins.service import model_loading_error
from serve_app.requests.body import Form

_NOT_FOUND = NotFoundError('There is no job "proteins_1".', "job_id", "job_not_found")
_NO_PART = NotFoundError("The job has parts 1 to 20, and no 21.", "number", "part_not_found")
_NOT_READY = VideoNotReadyError("Part 7 is not there, 6 of 20 are; the job is embedding.", "number", "part_not_ready")
_FINAL = VideoFinalError("The job is completed; there is nothing to cancel.", "job_id", "job_final")
_CREATE_ERRORS = (
    InvalidRequestError("Unknown parameter: \"layer\". Did you mean 'layers'?", "layer", "unknown_parameter"),
    InvalidRequestError("Invalid FASTA: it holds no sequence.", "fasta", "fasta_invalid"),
    InvalidRequestError("The file holds more than 1000000 sequences; send it in several.", "fasta", "file_too_large"),
    BodyTooLargeError("The file is longer than the 1000000000 bytes that are allowed."),
    UnsupportedMediaTypeError('The Content-Type is "text/html"; it must be text/x-fasta.'),
    RequestTimeoutError("Nothing of the file came for 30 s; send it again."),
    model_loading_error(),
)
_STREAM: Responses = {
    200: {
        "description": "Events `state`, `progress`, and in the end `done` or `deleted`; the `data` of each is one line "
        "of JSON whose `type` is the event's name; its `id` goes into Last-Event-ID",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_PART: Responses = {
    200: {
        "description": "The answers, as arrays in the format of the job; `answer` among them is JSON that tells which "
        "array is what",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "FASTA, at most 1 GB and a million sequences; gzip with Content-Encoding: gzip",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in FASTA_TYPES},
    }
}

router = APIRouter(prefix="/jobs", tags=["jobs"])


FileState = Literal["queued", "embedding", "completed", "failed", "cancelled"]


class ListQuery(BaseModel):
    """Which jobs a listing holds."""

    limit: int = Field(20, ge=1, le=100, description="how many at most")
    after: str | None = Field(None, description="id of the last job of the page before")
    order: Order = Field("desc", description="by the time of creation")
    state: FileState | None = Field(None, description="the exact one")
    tenant: TenantName | None = Field(
        None, description="whose jobs; where keys are needed, the key's tenant whatever it says"
    )


def _jobs(request: Request) -> ProteinJobs:
    jobs: ProteinJobs = request.app.state.jobs
    return jobs


@router.post("", responses=error_responses(*_CREATE_ERRORS, *WRITE_ERRORS), openapi_extra=FILE_BODY)
async def create_job(request: Request, response: Response, caller: AuthenticatedCaller) -> ProteinJob:
    """Accept a FASTA file; answers when it is stored whole. What is wanted of each sequence stands in the query.

    All that `/predict/batch` takes but mutations, and `format`, `priority`, `webhook_url`.
    """
    jobs = _jobs(request)
    checks: ProteinRequestChecker = request.app.state.services.checks
    asked = checks.file(Form(request.query_params))
    accepted = await jobs.submit(request, asked, caller)
    if accepted.repeated:
        response.headers[REPLAYED_HEADER] = "true"
    return jobs.views.job(accepted.job)


@router.get("", responses=error_responses())
async def list_jobs(
    request: Request, query: Annotated[ListQuery, Query()], caller: AuthenticatedCaller
) -> ProteinJobPage:
    """List jobs by their time of creation."""
    jobs = _jobs(request)
    states = () if query.state is None else (JobState(query.state),)
    wanted = JobFilter(states, query.tenant)
    return jobs.views.page(await jobs.page(query.limit, query.after, query.order, wanted, caller))


@router.get("/{job_id}", responses=error_responses(_NOT_FOUND))
async def retrieve_job(request: Request, job_id: str, caller: AuthenticatedCaller) -> ProteinJob:
    """Tell the state of a job."""
    jobs = _jobs(request)
    return jobs.views.job(await jobs.job(job_id, caller))


@router.get("/{job_id}/events", responses=_STREAM | error_responses(_NOT_FOUND), **EVENT_DOCS)
async def follow_job(
    request: Request,
    job_id: str,
    caller: AuthenticatedCaller,
    last_event_id: Annotated[str | None, Header(description="id of the last event that was received")] = None,
) -> Response:
    """Follow a job as server-sent events, until it ends. A closed stream cancels nothing."""
    jobs = _jobs(request)
    job = await jobs.job(job_id, caller)  # raises before the answer begins
    return ProteinJobEvents.after(jobs, caller, last_event_id).answer(job, request.method)


@router.get("/{job_id}/history", responses=error_responses(_NOT_FOUND))
async def list_moves(request: Request, job_id: str, caller: AuthenticatedCaller) -> ProteinHistory:
    """List the moves of a job from state to state, oldest first, with their reasons."""
    return ProteinHistory(data=[to_move(move) for move in await _jobs(request).history(job_id, caller)])


@router.get("/{job_id}/parts/{number}", responses=_PART | error_responses(_NOT_FOUND, _NO_PART, _NOT_READY))
async def download_part(request: Request, job_id: str, number: int, caller: AuthenticatedCaller) -> Response:
    """Download a part of the answers, from 1; each as soon as it is done. Takes Range and If-Range."""
    jobs = _jobs(request)
    job = await jobs.newest_job(job_id, caller)
    key, info = await jobs.part(job, number)
    name = f"{job_id}-{PurePosixPath(key).name}"
    return await send_file(jobs.store, request, key, info, file_headers(info, name))


@router.post("/{job_id}/cancel", responses=error_responses(_NOT_FOUND, _FINAL, *WRITE_ERRORS))
async def cancel_job(request: Request, job_id: str, caller: AuthenticatedCaller) -> ProteinJob:
    """Stop a job after the part that it is at; what is done can be downloaded until it is deleted."""
    jobs = _jobs(request)
    return jobs.views.job(await jobs.cancel(job_id, caller))


@router.delete("/{job_id}", responses=error_responses(_NOT_FOUND, *WRITE_ERRORS))
async def delete_job(request: Request, job_id: str, caller: AuthenticatedCaller) -> DeletedProteinJob:
    """Delete a job with all its answers; one that is not done is cancelled first."""
    await _jobs(request).delete(job_id, caller)
    return DeletedProteinJob(id=job_id)
