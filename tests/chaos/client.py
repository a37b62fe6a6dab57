"""The clients of a run: each request is sent until it is accepted, then its job is waited for and fetched."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx

from tests.chaos.judge import FINAL

CALLERS = 32
TIMEOUT_S = 15.0
PAUSE_S = 0.5
POLL_S = 1.0
PAGE = 100
OK = 200
NOT_FOUND = 404
# What a client is told to wait out: too much at once, a part that is away, a front that has lost its replica.
PASSING = (429, 502, 503, 504)


class Client:
    """Talks to one server, whatever happens to it, until `deadline` (monotonic seconds).

    keys: begins the Idempotency-Key of each request. api_key: of a server that asks for one. odd: answers that were not
    expected, counted. repeated: what there was instead of an answer to keep, counted; not where nobody took the
    connection, which clients try again by themselves.
    """

    def __init__(self, url: str, keys: str, deadline: float, api_key: str | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=CALLERS),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )
        self._callers = asyncio.Semaphore(CALLERS)
        self._keys = keys
        self._deadline = deadline
        self.odd: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.refused: list[str] = []

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(self, number: int, request: dict[str, Any]) -> str | None:
        """Send the request until it is accepted; gives the job's id, None if time is over before."""
        headers = {"Idempotency-Key": f"{self._keys}-{number}"}
        answer = await self._until_ok("POST", "/v1/videos", json=request, headers=headers)
        if answer is None or answer.status_code != OK:
            self.refused.append("no answer in time" if answer is None else _told(answer))
            return None
        return str(answer.json()["id"])

    async def look(self) -> None:
        """One small request, to see whether it is answered."""
        await self._send("GET", "/v1/videos", params={"limit": 1})

    async def wait(self, job_ids: Iterable[str]) -> None:
        """Return when all of the jobs are final, or time is over."""
        waiting = set(job_ids)
        while waiting and time.monotonic() < self._deadline:
            waiting -= await self._final_ones(waiting)
            await asyncio.sleep(POLL_S)

    async def fetch(self, job_id: str) -> tuple[dict[str, Any] | None, bytes | None]:
        """The video object and the clip; None for what is not there."""
        answer = await self._until_ok("GET", f"/v1/videos/{job_id}")
        if answer is None or answer.status_code != OK:
            return None, None
        video: dict[str, Any] = answer.json()
        if video["state"] != "completed":
            return video, None
        content = await self._until_ok("GET", f"/v1/videos/{job_id}/content")
        return video, content.content if content is not None and content.status_code == OK else None

    async def _final_ones(self, wanted: set[str]) -> set[str]:
        """Those of the jobs that a listing shows as final; it goes back in time only as far as is needed."""
        final: set[str] = set()
        unseen, after = set(wanted), None
        while unseen:
            query = {"limit": PAGE} | ({"after": after} if after else {})
            answer = await self._send("GET", "/v1/videos", params=query)
            if answer is None or answer.status_code != OK:
                break
            page = answer.json()
            final |= {video["id"] for video in page["data"] if video["id"] in wanted and video["state"] in FINAL}
            unseen -= {video["id"] for video in page["data"]}
            after = page["last_id"]
            if not page["has_more"]:
                break
        return final

    async def _until_ok(self, method: str, path: str, **about: Any) -> httpx.Response | None:
        """Repeat until the answer is one to keep: 200 or a refusal. None if there is none when time is over."""
        while True:
            async with self._callers:
                answer = await self._send(method, path, **about)
            if answer is not None and answer.status_code < 500 and answer.status_code not in PASSING:
                return answer
            if time.monotonic() > self._deadline:
                return answer
            await asyncio.sleep(PAUSE_S)

    async def _send(self, method: str, path: str, **about: Any) -> httpx.Response | None:
        try:
            answer = await self._http.request(method, path, **about)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None
        except httpx.TransportError as error:
            self.repeated[f"{method} {type(error).__name__}"] += 1
            return None
        if answer.status_code in PASSING:
            self.repeated[f"{method} {answer.status_code}"] += 1
        elif answer.status_code != OK:
            self.odd[f"{method} {_told(answer)}"] += 1
        return answer


def _told(answer: httpx.Response) -> str:
    return f"{answer.status_code} {' '.join(answer.text.split())[:200]}"
