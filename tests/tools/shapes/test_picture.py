import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence

from models.shapes.evaluation.mp4 import write_mp4
from models.shapes.make_picture import PROMPTS, make_clips, save

FRAMES = 3
FPS = 25


class StandIn:
    """A server whose clip of each prompt is a little lighter than the one before, and grows darker within."""

    def __init__(self, folder: Path, last: str = "completed") -> None:
        self._folder, self._last = folder, last
        self._states: dict[str, list[str]] = {}
        self.asked: list[dict[str, object]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return self._accept(json.loads(request.content))
        number = request.url.path.split("/")[3]
        if request.url.path.endswith("/content"):
            path = self._folder / f"{number}.mp4"
            levels = 60 + 30 * int(number) - 20 * np.arange(FRAMES)
            write_mp4(path, np.broadcast_to(levels[:, None, None, None], (FRAMES, 32, 32, 3)).astype(np.uint8), FPS)
            return httpx.Response(200, content=path.read_bytes())
        return self._tell(number)

    def _accept(self, body: dict[str, object]) -> httpx.Response:
        number = str(len(self.asked))
        self.asked.append(body)
        self._states[number] = [self._last, "in_progress", "queued"]
        return self._tell(number)

    def _tell(self, number: str) -> httpx.Response:
        video = {"id": number, "status": self._states[number].pop(), "fps": FPS, "error": {"message": "out of luck"}}
        return httpx.Response(200, json=video)


def client_of(answer: StandIn) -> httpx.Client:
    return httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))


def test_the_picture_shows_each_prompt_and_plays_as_fast_as_the_videos(tmp_path: Path) -> None:
    server = StandIn(tmp_path)
    with client_of(server) as client:
        clips = make_clips(client, seed=7)
    assert server.asked == [{"prompt": prompt, "seed": 7} for prompt in PROMPTS]
    assert [clip.frames.shape for clip in clips] == [(FRAMES, 32, 32, 3)] * 6
    save(clips, tmp_path / "picture.webp")
    with Image.open(tmp_path / "picture.webp") as picture:
        frames = [frame.copy() for frame in ImageSequence.Iterator(picture)]
    assert [frame.info["duration"] for frame in frames] == [1000 // FPS] * FRAMES
    centres = [(132 + 252 * (number % 3), 132 + 286 * (number // 3)) for number in range(6)]
    for time, frame in enumerate(frames):
        shown = np.asarray(frame.convert("L"))
        levels = [int(shown[y, x]) for x, y in centres]
        assert levels == pytest.approx([60 + 30 * number - 20 * time for number in range(6)], abs=6)


def test_a_video_that_failed_is_told(tmp_path: Path) -> None:
    with client_of(StandIn(tmp_path, "failed")) as client, pytest.raises(SystemExit, match="failed: .*out of luck"):
        make_clips(client, seed=1)


def test_without_a_server_it_says_how_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with (
        httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(SystemExit, match=r"^no server at http://127\.0\.0\.1:1; start it with make serve$"),
    ):
        make_clips(client, seed=1)
