"""What happens to a job, as server-sent events: its moves, its progress, its end, and what its kind tells beside them.

An event's id is `<moves>.<step>`: the stream has sent so many entries of the history, and the progress up to this step.
With the last id that it received, a client continues after a break, at any HTTP replica. Events are made from the
registry's feed, so a stream costs the registry next to nothing; closing it ends nothing but the stream.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from fastapi import Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from deployments.errors import RegistryUnavailableError
from deployments.replica.serve_private import is_draining
from serve_app.access.tenants import Caller
from serve_app.errors import NotFoundError, UnauthenticatedError
from serve_app.feed.new_keys import JobFeed
from serve_app.ingress.job_access import JobAccess
from serve_app.jobs import Job, Move

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = format_sse_event(comment="ping")
# Proxies that collect answers (nginx) must send each event at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

DRAINING_CHECK_S = 0.2
# How long a draining replica is still sent requests: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S.
ROUTED_S = 1.0

_EVENT_ID = re.compile(r"([0-9]{1,9})\.[0-9]{1,9}")


class Event(Protocol):
    """One of the models of events; two with the same content are equal."""

    @property
    def type(self) -> str:
        """The event's name."""
        ...

    def model_dump_json(self) -> str: ...


async def shut_down_when_draining(feed: JobFeed) -> None:
    """End the streams and long polls of a replica that is to go away: their clients ask again, at another one.

    Not at once, or the HTTP front, which still routes to this replica, would send them here again.
    """
    while not is_draining():
        await asyncio.sleep(DRAINING_CHECK_S)
    await asyncio.sleep(ROUTED_S)
    feed.begin_shutdown()


Access = TypeVar("Access", bound=JobAccess)


@dataclass
class JobEvents(ABC, Generic[Access]):
    """The stream of one client, and what it has sent; a subclass makes the events of its kind of job."""

    access: Access
    caller: Caller
    moves: int = 0  # how many entries of the history
    _progress: Event | None = field(default=None, init=False)  # the last one
    _done: bool = field(default=False, init=False)

    @classmethod
    def after(cls, access: Access, caller: Caller, last_event_id: str | None) -> Self:
        """What follows the event with this id; all of it if the id is not one of ours."""
        match = _EVENT_ID.fullmatch(last_event_id or "")
        return cls(access, caller, int(match[1]) if match else 0)

    @abstractmethod
    def state_event(self, job: Job, number: int, move: Move) -> Event:
        """An entry of the history, of this number."""

    @abstractmethod
    def progress_event(self, job: Job) -> Event:
        """How far it is."""

    @abstractmethod
    def done_event(self, job: Job) -> Event:
        """It has ended."""

    @abstractmethod
    def deleted_event(self, job: Job) -> Event:
        """It was deleted."""

    async def further_events(self, job: Job) -> AsyncIterator[Event]:
        """What else has happened to a job that has not ended; each is noted as sent when the next is asked for."""
        return
        yield

    def answer(self, job: Job, method: str) -> Response:
        """The stream as the answer to a request with this method."""
        if method == "HEAD":
            head = Response(headers=HEADERS, media_type=MEDIA_TYPE)
            del head.headers["content-length"]  # which a stream does not have
            return head
        return StreamingResponse(self.stream(job), headers=HEADERS, media_type=MEDIA_TYPE)

    async def stream(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Events until the job ends or is deleted, or this replica is to end, in the form of the HTML standard, 9.2.

        It ends without a word when the caller's key is no longer good: who asks again is told why.
        While the registry is away there are heartbeats alone.
        """
        with self.access.feed.watch(job.id) as change:
            while True:
                change.clear()
                try:
                    key_s = await self.access.check_key(self.caller)
                except UnauthenticatedError:
                    return
                try:
                    job = await self.access.job(job.id, self.caller)
                    async for event in self._new_events(job):
                        yield event
                except NotFoundError:
                    yield self._format(self.deleted_event(job), job)
                    return
                except RegistryUnavailableError:
                    yield HEARTBEAT
                if self._done or self.access.feed.shutting_down:
                    return
                silence_s = self.access.timing.heartbeat_s
                wait_s = silence_s if key_s is None else min(silence_s, key_s)
                if not await self.access.wait_for_change(change, wait_s):
                    yield HEARTBEAT

    async def _new_events(self, job: Job) -> AsyncIterator[bytes]:
        """The events that were not sent yet.

        Each is noted as sent when the next is asked for: if the registry is away for the next one, none is lost and
        none comes twice.
        """
        if self.moves < job.moves:
            history = await self.access.history(job.id, self.caller)
            for number, move in enumerate(history[self.moves :], start=self.moves + 1):
                # A state that is replayed has the id of its own time.
                yield self._format(self.state_event(job, number, move), job, number)
                self.moves = number
        if job.final:
            # The history may be from a feed that has come back and has not heard of the end yet.
            self._done = self.moves >= job.moves
            if self._done:
                yield self._format(self.done_event(job), job)
            return
        progress = self.progress_event(job)
        if progress != self._progress:
            yield self._format(progress, job)
            self._progress = progress
        async for event in self.further_events(job):
            yield self._format(event, job)

    def _format(self, event: Event, job: Job, moves: int | None = None) -> bytes:
        number = self.moves if moves is None else moves
        return format_sse_event(data_str=event.model_dump_json(), event=event.type, id=f"{number}.{job.step}")
