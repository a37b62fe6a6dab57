"""Requests that Schemathesis makes from the OpenAPI document, to videos in every state, and what must hold of answers.

Requests are both as the document allows them and as it does not. An id in the path is that of a video that is there as
often as not, so that the answers are not all 404.
"""

import asyncio
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.keys import Variant
from deployments.messages import VideoSpec
from serve_app.ingress.app import create_app
from serve_app.jobs import JobError, JobState, Submission, new_job_id
from tests.support.http.fakes import FakeServices

SPEC = VideoSpec("a red circle", "", 64, 64, 25, 24, 20, 3.0, 7)
FILES: dict[Variant, bytes] = {"video": b"mp4" * 1000, "thumbnail": b"webp", "spritesheet": b"webp" * 9}
# A stream and a long poll of a video that is being made end with it: so soon after one has begun, it is cancelled.
ENDS_AFTER_S = 0.02
SYNC = "/v1/videos/sync"  # answers when the video is completed

_ID = re.compile(r"video_[0-9a-f]{32}")
# 400 is also what a body may get that is well-formed and asks for what cannot be: more pixels or tokens than there may
# be, two fields for one thing. No JSON schema can say that, so a request that follows it may still be refused.
EXCLUDED = [positive_data_acceptance]


class Seeds:
    """ASGI around the app: videos in every state that are there again after each request, by new ids if need be."""

    def __init__(self, app: ASGIApp, services: FakeServices, tenant: str) -> None:
        self._app = app
        self._services = services
        self._tenant = tenant
        self.ids: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        waits = scope["path"].endswith("/events") or b"wait=" in scope["query_string"]
        ending = [asyncio.create_task(self._end(video_id)) for video_id in self.ids.values() if waits]
        making = asyncio.create_task(self._complete_new()) if scope["path"] == SYNC else None
        try:
            await self._app(scope, receive, send)
        finally:
            await asyncio.gather(*ending)
            if making is not None:
                making.cancel()
                await asyncio.wait([making])
            self.restore()

    async def _end(self, video_id: str) -> None:
        job = self._services.memory.jobs.get(video_id)
        if job is not None and not job.final:
            await asyncio.sleep(ENDS_AFTER_S)
            await self._services.memory.cancel(video_id)

    async def _complete_new(self) -> None:
        """Complete whatever is asked for, until it is enough."""
        registry = self._services.memory
        while True:
            for job in [job for job in registry.jobs.values() if not job.final and job.id not in self.ids.values()]:
                registry.complete(job.id)
                self._services.add_file(job.id, "video", FILES["video"])
            await asyncio.sleep(ENDS_AFTER_S)

    def restore(self) -> None:
        jobs = self._services.memory.jobs
        for name in (*JobState, "no_files"):
            job = jobs.get(self.ids.get(name, ""))
            if job is None or job.state != (JobState.COMPLETED if name == "no_files" else name):
                self.ids[name] = self._make(name)

    def _make(self, name: str) -> str:
        registry, job_id = self._services.memory, new_job_id()
        registry.insert(Submission(job_id, "mochi-1", SPEC, self._tenant))
        if name in ("completed", "no_files"):
            registry.complete(job_id)
        elif name != "queued":
            error = JobError("out_of_memory", "no room") if name == "failed" else None
            registry.move(job_id, JobState(name), error=error)
        if name == "sampling":
            registry.previews[job_id] = b"webp so far"
        if name == "completed":
            for variant, data in FILES.items():
                self._services.add_file(job_id, variant, data)
        return job_id


@contextmanager
def fuzzed_app(services: FakeServices, tenant: str = "default") -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The app over `services` behind a real HTTP server in a thread of its own: its URL, and the ids of the seeds."""
    services.memory.announce_all(max_tokens=1280)
    seeds = Seeds(create_app(services), services, tenant)
    server = uvicorn.Server(uvicorn.Config(seeds, "127.0.0.1", 0, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server ended before it was ready"
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        httpx.get(f"{url}/health").raise_for_status()
        yield url, lambda: list(seeds.ids.values())
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


# A request that is framed wrongly ends at the HTTP server, which answers in plain text; no route sees it.
FRAMING = {"content-length", "transfer-encoding"}


@dataclass
class Fuzz:
    """Requests to a server, and what it answered."""

    url: str
    ids: Callable[[], list[str]]  # of videos that are there
    headers: dict[str, str] = field(default_factory=dict)  # of all requests
    statuses: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)
    """How often each status was answered, by method and path."""

    @property
    def cases(self) -> int:
        return sum(statuses.total() for statuses in self.statuses.values())

    def run(self, cases: int, seed: int = 0, left_out: Collection[str] = ()) -> None:
        """At least so many, shared out to all operations, half of them as the document does not allow them.

        Args:
            left_out: paths that are not asked.
        """
        # All requests have the key: what comes without one, or with a wrong one, is tried in test_two_tenants.
        document = httpx.get(f"{self.url}/openapi.json").json()
        for path in left_out:
            del document["paths"][path]
        for item in document["paths"].values():
            for operation in item.values():
                operation.pop("security", None)
        schema = schemathesis.openapi.from_dict(document)

        @schema.hook("map_path_parameters")
        def known_ids(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
            return self._path_parameters(path_parameters)

        @schema.hook("map_headers")
        def well_framed(context: Any, headers: dict[str, str] | None) -> dict[str, str] | None:
            return headers and {name: value for name, value in headers.items() if name.lower() not in FRAMING}

        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        self.statuses |= {(operation.method.upper(), operation.path): Counter() for operation in operations}
        each = -(-cases // len(operations))
        with requests.Session() as session:
            turn = 0
            while self.cases < cases:
                for number, operation in enumerate(operations):
                    for mode in _modes(operation):
                        self._some(operation, mode, -(-each // 2), session, seed + 1000 * turn + number)
                turn += 1

    def check(self, statuses: set[int]) -> None:
        """Each operation was tried, these statuses were among the answers, and no answer was a fault of the server."""
        assert all(self.statuses.values())
        answered = {status for counts in self.statuses.values() for status in counts}
        assert statuses <= answered
        assert max(answered) < 500

    def _some(self, operation: Any, mode: GenerationMode, count: int, session: requests.Session, seed: int) -> None:
        statuses = self.statuses[operation.method.upper(), operation.path]

        @hypothesis_seed(seed)
        @settings(
            max_examples=count,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            answer = case.call(self.url, session=session, headers=self.headers, allow_redirects=False, timeout=30)
            statuses[answer.status_code] += 1
            case.validate_response(answer, headers=self.headers, excluded_checks=EXCLUDED)

        one()

    def _path_parameters(self, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        """Puts the id of a video that there is in place of most well-formed ones."""
        if path_parameters and _ID.fullmatch(str(path_parameters.get("video_id"))):
            ids = [*self.ids(), path_parameters["video_id"]]
            drawn = hashlib.sha256(path_parameters["video_id"].encode()).digest()[0]
            return path_parameters | {"video_id": ids[drawn % len(ids)]}
        return path_parameters


def _modes(operation: Any) -> list[GenerationMode]:
    """Where nothing can be given, nothing can be given wrongly."""
    given = any((operation.path_parameters, operation.query, operation.headers, operation.body))
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if given else [GenerationMode.POSITIVE]
