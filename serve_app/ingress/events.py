"""What happens to a video, as server-sent events: its moves, its progress, its previews, its end.

An event's id is `<moves>.<step>`: the stream has sent so many entries of the history, and the progress up to this step.
With the last id that it received, a client continues after a break, at any ingress replica. Events are made from the
registry's feed, so a stream costs the registry nothing but its previews; closing it ends nothing but the stream.
"""

import re
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import Caller
from serve_app.errors import NotFoundError, UnauthenticatedError
from serve_app.ingress.authentication import AuthenticatedCaller
from serve_app.ingress.services import Services, services_of
from serve_app.jobs import Job
from serve_app.openapi.errors import VIDEO_NOT_FOUND, error_responses
from serve_app.openapi.media import EVENT_DOCS, EVENT_RESPONSES
from serve_app.openapi.schemas import DeletedEvent, DoneEvent, PreviewEvent, ProgressEvent, VideoEvent
from serve_app.openapi.views import to_progress, to_state

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = format_sse_event(comment="ping")
# Proxies that collect answers (nginx) must send each event at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_EVENT_ID = re.compile(r"([0-9]{1,9})\.[0-9]{1,9}")

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
    if request.method == "HEAD":
        head = Response(headers=HEADERS, media_type=MEDIA_TYPE)
        del head.headers["content-length"]  # which a stream does not have
        return head
    events = VideoEvents.after(services, caller, last_event_id).stream(job)
    return StreamingResponse(events, headers=HEADERS, media_type=MEDIA_TYPE)


@dataclass
class VideoEvents:
    """The stream of one client, and what it has sent."""

    services: Services
    caller: Caller
    moves: int = 0  # how many entries of the history
    _progress: ProgressEvent | None = field(default=None, init=False)  # the last one
    _preview_step: int | None = field(default=None, init=False)  # of the last preview
    _done: bool = field(default=False, init=False)

    @classmethod
    def after(cls, services: Services, caller: Caller, last_event_id: str | None) -> "VideoEvents":
        """What follows the event with this id; all of it if the id is not one of ours."""
        match = _EVENT_ID.fullmatch(last_event_id or "")
        return cls(services, caller, int(match[1]) if match else 0)

    async def stream(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Events until the job ends or is deleted, or this replica is to end, in the form of the HTML standard, 9.2.

        It ends without a word when the caller's key is no longer good: who asks again is told why.
        While the registry is away there are heartbeats alone.
        """
        with self.services.feed.watch(job.id) as change:
            while True:
                change.clear()
                try:
                    key_s = await self.services.check_key(self.caller)
                except UnauthenticatedError:
                    return
                try:
                    job = await self.services.job(job.id, self.caller)
                    async for event in self._new_events(job):
                        yield self._format(event, job)
                except NotFoundError:
                    yield self._format(DeletedEvent(video_id=job.id), job)
                    return
                except RegistryUnavailableError:
                    yield HEARTBEAT
                if self._done or self.services.feed.shutting_down:
                    return
                silence_s = self.services.timing.heartbeat_s
                wait_s = silence_s if key_s is None else min(silence_s, key_s)
                if not await self.services.wait_for_change(change, wait_s):
                    yield HEARTBEAT

    async def _new_events(self, job: Job) -> AsyncIterator[VideoEvent]:
        """The events that were not sent yet.

        Each is noted as sent when the next is asked for: if the registry is away for the next one, none is lost and
        none comes twice.
        """
        if self.moves < job.moves:
            history = await self.services.history(job.id, self.caller)
            for number, move in enumerate(history[self.moves :], start=self.moves + 1):
                yield to_state(job.id, number, move)
                self.moves = number
        if job.final:
            # The history may be from a feed that has come back and has not heard of the end yet.
            self._done = self.moves >= job.moves
            if self._done:
                yield DoneEvent(video=self.services.video(job))
            return
        progress = to_progress(job)
        if progress != self._progress:
            yield progress
            self._progress = progress
        step = job.preview_step
        if step is None or step == self._preview_step:
            return
        picture = await self.services.preview(job)
        if picture is not None:
            yield PreviewEvent(video_id=job.id, step=step, image=b64encode(picture).decode("ascii"))
            self._preview_step = step

    def _format(self, event: VideoEvent, job: Job) -> bytes:
        """A state that is replayed has the id of its own time."""
        moves = event.number if event.type == "state" else self.moves
        return format_sse_event(data_str=event.model_dump_json(), event=event.type, id=f"{moves}.{job.step}")
