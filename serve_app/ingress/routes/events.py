"""The events of a video, by `event_stream.py`: its previews too, which are asked of the registry."""

from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.event_stream import JobEvents
from serve_app.ingress.services import Services, services_of
from serve_app.jobs import Job, Move
from serve_app.openapi.errors import VIDEO_NOT_FOUND, error_responses
from serve_app.openapi.media import EVENT_DOCS, EVENT_RESPONSES
from serve_app.openapi.schemas import DeletedEvent, DoneEvent, PreviewEvent, ProgressEvent, StateEvent
from serve_app.openapi.views import to_progress, to_state

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/videos/{video_id}/events", responses=EVENT_RESPONSES | error_responses(VIDEO_NOT_FOUND), **EVENT_DOCS)
async def follow_video(
    request: Request,
    video_id: str,
    caller: AuthenticatedCaller,
    last_event_id: Annotated[str | None, Header(description="id of the last event that was received")] = None,
) -> Response:
    """Follow a video: its moves, progress and previews as server-sent events, until it ends.

    A closed stream cancels nothing. With Last-Event-ID, as browsers send it by themselves, it goes on from there.
    """
    services = services_of(request)
    job = await services.job(video_id, caller)  # raises before the answer begins
    return VideoEvents.after(services, caller, last_event_id).answer(job, request.method)


@dataclass
class VideoEvents(JobEvents[Services]):
    """Of a video: its previews too."""

    _preview_step: int | None = field(default=None, init=False)  # of the last preview

    def state_event(self, job: Job, number: int, move: Move) -> StateEvent:
        return to_state(job.id, number, move)

    def progress_event(self, job: Job) -> ProgressEvent:
        return to_progress(job)

    def done_event(self, job: Job) -> DoneEvent:
        return DoneEvent(video=self.access.video(job))

    def deleted_event(self, job: Job) -> DeletedEvent:
        return DeletedEvent(video_id=job.id)

    async def further_events(self, job: Job) -> AsyncIterator[PreviewEvent]:
        """The newest preview."""
        step = job.preview_step
        if step is None or step == self._preview_step:
            return
        picture = await self.access.preview(job)
        if picture is not None:
            yield PreviewEvent(video_id=job.id, step=step, image=b64encode(picture).decode("ascii"))
            self._preview_step = step
