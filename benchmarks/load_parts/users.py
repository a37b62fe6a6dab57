"""The clients of `benchmarks/load.py`; Locust runs a thousand of them.

    locust -f benchmarks/load_parts/users.py --headless --host http://127.0.0.1:8000 --users 1000 --figures figures.json

A client looks around among the newest videos until its turn comes, then submits a small one, polls it or follows its
events to the end, downloads it and looks around again. Failures count from the beginning, requests from when all
clients are there. What is a failure: an answer other than 2xx (but a 429 that says when to try again, which is done),
an answer that does not hold what it must, a stream of events that breaks off or leaves one out, a video that is no mp4
or was not made.
"""

import itertools
import random
import sys
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import FastHttpUser, between, events, task

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.load_parts.checks import Figures, events_in, is_mp4, video_at_the_end

CLIP = {"prompt": "a red circle moving right", "size": "32x32", "num_frames": 7, "num_inference_steps": 2}
# Among the clients that submitted a video; the others poll.
STREAM_SHARE = 0.5
LIST_SHARE = 0.15
PAUSE_S = (1, 3)
CHUNK = 65_536

figures = Figures()
numbers = itertools.count()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    parser.add_argument("--measure", type=float, default=180, help="seconds, from when all clients are there")
    parser.add_argument("--videos-a-second", type=float, default=4, help="of all clients together")
    parser.add_argument("--figures", type=Path, help="file to write what was seen to")


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    environment.events.request.add_listener(figures.note)
    environment.events.spawning_complete.add_listener(figures.begin)
    environment.events.spawning_complete.add_listener(lambda **_: gevent.spawn(_end, environment))


def _end(environment: Any) -> None:
    """Write the figures after the time to measure, then stop the clients wherever they are."""
    options = environment.parsed_options
    gevent.sleep(options.measure)
    figures.write(options.figures)
    environment.runner.quit()


class Client(FastHttpUser):
    """A client with a connection of its own."""

    wait_time = between(*PAUSE_S)
    network_timeout = 60.0
    connection_timeout = 60.0

    def on_start(self) -> None:
        """Its turn to submit comes once in a round, for each client at another moment."""
        options = self.environment.parsed_options
        self.chance = random.Random(next(numbers))
        self.round_s = options.num_users / options.videos_a_second
        self.submit_at = time.monotonic() + self.chance.uniform(0, self.round_s)
        self.seen: str | None = None  # a video to look at
        self.own: str | None = None  # the video that it waits for
        self.streams = False

    @task
    def act(self) -> None:
        if self.own is not None:
            self.follow(self.own) if self.streams else self.poll(self.own)
        elif time.monotonic() >= self.submit_at:
            self.submit()
        elif self.seen is None or self.chance.random() < LIST_SHARE:
            self.look_around()
        else:
            self.read(self.seen, "status")

    def submit(self) -> None:
        with self.client.post("/v1/videos", json=CLIP, name="submit", catch_response=True) as answer:
            if answer.status_code == 429 and "Retry-After" in answer.headers:
                self.submit_at = time.monotonic() + float(answer.headers["Retry-After"])
                figures.counts["told to wait"] += 1
                answer.success()
                return
            self.own = checked(answer, "id")
        self.submit_at += self.round_s
        self.streams = self.chance.random() < STREAM_SHARE

    def poll(self, video_id: str) -> None:
        video = self.read(video_id, "poll")
        if video is not None and video["status"] in ("completed", "failed"):
            self.finish(video)

    def read(self, video_id: str, name: str) -> dict[str, Any] | None:
        with self.client.get(f"/v1/videos/{video_id}", name=name, catch_response=True) as answer:
            video: dict[str, Any] | None = checked(answer)
        return video

    def look_around(self) -> None:
        with self.client.get("/v1/videos?limit=20", name="list", catch_response=True) as answer:
            videos = checked(answer, "data")
        if videos:
            self.seen = self.chance.choice(videos)["id"]

    def follow(self, video_id: str) -> None:
        """Read a video's events to the end. Timed is how soon the answer begins."""
        path = f"/v1/videos/{video_id}/events"
        with self.client.get(path, name="events", stream=True, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code} instead of events")
                return
            figures.counts["streams"] += 1
            try:
                body = b"".join(answer.iter_content(CHUNK, decode_content=False))
                video = video_at_the_end(events_in(body))
            except ValueError as error:
                answer.failure(error)
                return
        self.finish(video)

    def finish(self, video: dict[str, Any]) -> None:
        self.seen = self.own
        self.own = None
        if video["status"] != "completed":
            figures.failures[f"a video was not made: {video['error']}"] += 1
            return
        figures.counts["videos made"] += 1
        with self.client.get(f"/v1/videos/{video['id']}/content", name="download", catch_response=True) as answer:
            body = answer.content or b""
            if answer.status_code != 200 or not is_mp4(body):
                answer.failure(f"{answer.status_code}, {len(body)} bytes that are no mp4")


def checked(answer: Any, field: str | None = None) -> Any:
    """A field of the answer, all of it for None; None if it was a failure, which is then noted."""
    if answer.status_code != 200:
        answer.failure(f"{answer.status_code} {(answer.text or '')[:200]}")
        return None
    body = answer.json()
    return body if field is None else body[field]
