"""What the clients of `users.py` hold an answer to, and what they count. No Locust here, which patches sockets."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MP4_MARK = b"ftyp"


class Figures:
    """What the clients saw."""

    def __init__(self) -> None:
        self.measuring = False  # all clients are there
        self.begun = 0.0
        self.times: dict[str, list[float]] = defaultdict(list)
        """Milliseconds of each request, by its kind, while measuring."""
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def note(self, name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
        """A request has ended; Locust calls this."""
        if exception is not None:
            self.failures[f"{name}: {exception!r}"[:300]] += 1
        elif self.measuring:
            self.times[name].append(round(response_time, 2))

    def begin(self, **_: Any) -> None:
        """All clients are there."""
        self.measuring = True
        self.begun = time.perf_counter()

    def write(self, path: Path) -> None:
        """The end of the measurement."""
        self.measuring = False
        seconds = time.perf_counter() - self.begun
        found = {"seconds": seconds, "times": self.times, "counts": self.counts, "failures": self.failures}
        path.write_text(json.dumps(found))


def is_mp4(body: bytes) -> bool:
    """Whether it begins as ISO/IEC 14496-12 says: a box of the type ftyp."""
    return body[4:8] == MP4_MARK


def events_in(body: bytes) -> Iterator[dict[str, Any]]:
    """The data of each event of a stream, heartbeats left out. Raises ValueError for what is no JSON."""
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def video_at_the_end(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The video in the last event. Raises ValueError if the stream broke off or left a move out."""
    moves = 0
    for event in events:
        if event["type"] == "state":
            moves += 1
            if event["number"] != moves:
                raise ValueError(f"the stream of events had move {event['number']} after {moves - 1}")
        if event["type"] == "done":
            video: dict[str, Any] = event["video"]
            return video
    raise ValueError("the stream of events broke off")
