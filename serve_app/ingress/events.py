"""What happens to a video, as server-sent events: its moves, its progress, its previews, its end.

An event's id is `<moves>.<step>`: so much of the history was told, and the progress up to this step. With the last one
that it got, a client goes on after a break, at any ingress replica. Events are made from what the feed tells, so a
stream costs the registry nothing but its previews; and closing it ends nothing but the stream.
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event

from deployments.errors import RegistryUnavailableError
from serve_app.access.tenants import Caller
from serve_app.errors import NotFoundError
from serve_app.ingress.services import Services
from serve_app.jobs import Job
from serve_app.openapi.schemas import DeletedEvent, DoneEvent, PreviewEvent, ProgressEvent, VideoEvent
from serve_app.openapi.views import to_progress, to_state, to_video

HEARTBEAT_S = 10.0
HEARTBEAT = format_sse_event(comment="ping")

_EVENT_ID = re.compile(r"([0-9]{1,9})\.[0-9]{1,9}")


@dataclass
class VideoEvents:
    """The stream of one client. moves: how many of the history it was told; the others: what was told last."""

    services: Services
    caller: Caller
    moves: int = 0
    _progress: ProgressEvent | None = field(default=None, init=False)
    _preview: int | None = field(default=None, init=False)
    _done: bool = field(default=False, init=False)

    @classmethod
    def after(cls, services: Services, caller: Caller, last_event_id: str | None) -> "VideoEvents":
        """What follows the event with this id; all of it if the id is not one of ours."""
        known = _EVENT_ID.fullmatch(last_event_id or "")
        return cls(services, caller, int(known[1]) if known else 0)

    async def of(self, job: Job) -> AsyncIterator[bytes]:
        """Events until the job ends or is deleted, or this replica is to end, in the form of the HTML standard, 9.2.

        While the registry is away there are heartbeats alone.
        """
        with self.services.feed.watch(job.id) as change:
            while True:
                change.clear()
                try:
                    job = await self.services.job(job.id, self.caller)
                    async for event in self._news(job):
                        yield self._format(event, job)
                except NotFoundError:
                    yield self._format(DeletedEvent(video_id=job.id), job)
                    return
                except RegistryUnavailableError:
                    yield HEARTBEAT
                if self._done or self.services.feed.shutting_down:
                    return
                if not await self.services.next_change(change, HEARTBEAT_S):
                    yield HEARTBEAT

    async def _news(self, job: Job) -> AsyncIterator[VideoEvent]:
        """One at a time: what was counted as told has been, also if the registry is away for what comes after it."""
        if self.moves < job.moves:
            history = await self.services.history(job.id, self.caller)
            for number, move in list(enumerate(history, 1))[self.moves :]:
                yield to_state(job.id, number, move)
                self.moves = number
        if job.final:
            # The history may be from a feed that has come back and has not heard of the end yet.
            self._done = self.moves >= job.moves
            if self._done:
                yield DoneEvent(video=to_video(job, self.services.settings.retention))
            return
        progress = to_progress(job)
        if progress != self._progress:
            yield progress
            self._progress = progress
        step = job.preview_step
        if step is None or step == self._preview:
            return
        picture = await self.services.preview(job)
        if picture is not None:
            yield PreviewEvent(video_id=job.id, step=step, image=b64encode(picture).decode("ascii"))
            self._preview = step

    def _format(self, event: VideoEvent, job: Job) -> bytes:
        """A state that is replayed has the id of its own time."""
        moves = event.number if event.type == "state" else self.moves
        return format_sse_event(data_str=event.model_dump_json(), event=event.type, id=f"{moves}.{job.step}")
