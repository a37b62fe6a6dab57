"""The clients of `benchmarks/load.py`: Locust runs a thousand of them against a server.

    locust -f benchmarks/load_users.py --headless --host http://127.0.0.1:8000 --users 1000 --measure 180 --figures f.json

A client lives in rounds: it looks around until its turn comes, submits a small video, polls it or follows its events
to the end, downloads it and looks around again. Requests are counted from when all clients are there, failures from the
beginning. What is a failure: an answer other than 2xx (429 says when to try again, which is done), an answer that holds
not what it must, a stream of events that breaks off or has a gap, a video that is no mp4 or did not get made.
"""

import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, between, events, task
from locust.env import Environment
from locust.exception import RescheduleTask

CLIP = {"prompt": "a red circle moving right", "size": "32x32", "num_frames": 7, "num_inference_steps": 2}
FINAL = ("completed", "failed", "cancelled")
# Of the clients that submitted a video.
STREAM_SHARE = 0.5
MP4_MARK = b"ftyp"


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--measure", type=float, default=180, help="seconds to measure, from when all users are there")
    parser.add_argument("--figures", type=Path, default=None, help="file for the figures, JSON")
    parser.add_argument("--videos-a-second", type=float, default=2, help="of all users together")


class Client(FastHttpUser):
    """One client: keeps its connection, pauses between its requests, watches its own videos."""

    wait_time = between(1, 3)
    network_timeout = 90.0
    seen: str | None = None
    own: str | None = None
    follows = False

    def on_start(self) -> None:
        """Every user begins at another moment of its round."""
        self.chance = random.Random(next(_seeds))
        self.round_s = self.environment.runner.target_user_count / self.environment.parsed_options.videos_a_second
        self.submit_at = time.monotonic() + self.chance.uniform(0, self.round_s)

    @task
    def act(self) -> None:
        """The one thing that is next for this client."""
        if self.own is not None:
            self.follow() if self.follows else self.poll()
        elif time.monotonic() >= self.submit_at:
            self.submit()
        elif self.seen is None or self.chance.random() < 0.3:
            self.look_around()
        else:
            self.read(self.seen)

    def submit(self) -> None:
        with self.client.post("/v1/videos", json=CLIP, name="submit", catch_response=True) as answer:
            if answer.status_code == 429:
                # It is no failure to be told to wait, and to do so.
                answer.success()
                _figures.told_to_wait += 1
                self.submit_at = time.monotonic() + float(answer.headers["Retry-After"])
                return
            self.own = self._fields(answer, "id").get("id")
        self.submit_at += self.round_s
        self.follows = self.chance.random() < STREAM_SHARE

    def poll(self) -> None:
        video = self.read(self.own, "poll")
        if video.get("state") in FINAL:
            self.finish(video)

    def finish(self, video: dict[str, Any]) -> None:
        self.seen, self.own = self.own, None
        if video["state"] == "completed":
            self.download(video["id"])
        else:
            _figures.fail("make", f"a video ended as {video['state']}: {video['error']}")

    def read(self, video_id: str | None, name: str = "status") -> dict[str, Any]:
        with self.client.get(f"/v1/videos/{video_id}", name=name, catch_response=True) as answer:
            return self._fields(answer, "state")

    def look_around(self) -> None:
        with self.client.get("/v1/videos?limit=20", name="list", catch_response=True) as answer:
            videos = self._fields(answer, "data").get("data", [])
        if videos:
            self.seen = self.chance.choice(videos)["id"]

    def download(self, video_id: str) -> None:
        path = f"/v1/videos/{video_id}/content"
        with self.client.get(path, name="download", catch_response=True) as answer:
            if answer.status_code != 200 or (answer.content or b"")[4:8] != MP4_MARK:
                answer.failure(f"{answer.status_code}, {len(answer.content or b'')} bytes, no mp4")
            else:
                _figures.downloads += 1

    def follow(self) -> None:
        """Read the events of the video to the end; what is timed is how soon the first one is there."""
        path = f"/v1/videos/{self.own}/events"
        with self.client.get(path, name="events", stream=True, catch_response=True) as answer:
            answer.request_meta["response_time"] = None
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}")
                raise RescheduleTask
            begun = answer.request_meta["start_time"]
            done = self._read_events(answer, begun)
        if done is not None:
            self.finish(done)


_seeds = itertools.count()
