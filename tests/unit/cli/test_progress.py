"""The progress of videos as text."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.cli.progress import ProgressLines, progress_text, short_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_lengths_of_time_are_short(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


def test_progress_in_words() -> None:
    view = {"state": "sampling", "step": 3, "num_inference_steps": 20, "queue_position": None}
    assert progress_text(view | {"estimated_completion_at": 108}, 100) == "sampling, step 3/20, about 8 s left"
    waiting = {"state": "queued", "step": 0, "num_inference_steps": 20, "queue_position": 4}
    assert progress_text(waiting, 100) == "queued, 4 before it"


def test_lines_of_a_log_are_few() -> None:
    written: list[str] = []
    with ProgressLines(written.append, lambda: 100.0, None) as lines:
        progress = lines.add_video("video_1")
        for step in range(101):
            view: Mapping[str, Any] = {
                "state": "sampling",
                "progress": step,
                "step": step,
                "num_inference_steps": 100,
                "estimated_completion_at": 150,
            }
            progress.show(view)
        progress.show({"type": "state", "state": "sampling"})
    assert written[0] == "video_1: 0%, sampling, step 0/100, about 50 s left" and len(written) == 5
