"""Clients that no package is run for: what they send and how they read the answer, by their sources."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clients.clips import assert_as_told
from tests.support.servers.server import Server
from tests.support.waiting import wait_until

PROMPT = "a red circle moving right"


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """It follows no redirect."""
    with server.client() as client:
        assert not client.follow_redirects
        yield client


def accepted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


def polled(http: httpx.Client, video_id: str) -> dict[str, Any]:
    """Asked again and again until it is final."""
    answers: list[dict[str, Any]] = []

    def final() -> bool:
        answers.append(accepted(http.get(f"/v1/videos/{video_id}")))
        return answers[-1]["status"] in ("completed", "failed")

    wait_until(final)
    return answers[-1]


def test_n8ns_node(http: httpx.Client, tmp_path: Path) -> None:
    """packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/v2/actions/video/generate.operation.ts with its defaults."""
    parts = {"model": "sora-2", "prompt": PROMPT, "seconds": "4", "size": "1280x720"}
    # (None, text) makes a part of text in a multipart body, which a dict alone would not be.
    answer = http.post("/v1/videos", files={name: (None, text) for name, text in parts.items()})
    video = accepted(answer)
    assert answer.request.headers["content-type"].startswith("multipart/form-data")
    assert not video["error"]
    completed = polled(http, video["id"])
    assert not completed["error"]
    path = tmp_path / "data.mp4"
    with http.stream("GET", f"/v1/videos/{video['id']}/content") as content, path.open("wb") as file:
        assert (content.status_code, content.headers["content-type"]) == (200, "video/mp4")
        for chunk in content.iter_bytes():
            file.write(chunk)
    assert_as_told(completed, path)
    assert (completed["requested_size"], completed["requested_seconds"]) == ("1280x720", "4")


@pytest.mark.parametrize("size", ["1280x720", "720x1280", "1792x1024", "1024x1792"])
def test_sizes_that_clients_have_built_in_keep_their_shape(http: httpx.Client, size: str) -> None:
    video = accepted(http.post("/v1/videos", json={"prompt": PROMPT, "size": size, "num_inference_steps": 2}))
    width, height = map(int, video["size"].split("x"))
    wide, high = map(int, size.split("x"))
    assert 0.85 < (width / height) / (wide / high) < 1.15
    assert video["requested_size"] == size
    assert http.post(f"/v1/videos/{video['id']}/cancel").status_code in (200, 409)


def test_open_webuis_forks(http: httpx.Client, tmp_path: Path) -> None:
    """routers/videos.py of BuildStudio-Systems/open-webui: JSON, whole seconds, Range passed on, no redirect."""
    body = {"prompt": PROMPT, "model": "mochi-1", "size": "864x480", "seconds": 4, "seed": 5, "quality": "turbo"}
    answer = http.post("/v1/videos", json=body, headers={"X-OpenWebUI-User-Id": "7"})
    video = accepted(answer)
    assert (video["seed"], video["quality"], video["ignored_parameters"]) == (5, "fast", [])
    assert "x-ignored-parameters" not in answer.headers
    completed = polled(http, video["id"])
    path = f"/v1/videos/{video['id']}/content"
    whole = http.get(path)
    assert whole.status_code == 200, "what is no file and no part is a 502 there"
    part = http.get(path, headers={"Range": "bytes=0-99"})
    assert (part.status_code, part.content) == (206, whole.content[:100])
    (tmp_path / "clip.mp4").write_bytes(whole.content)
    assert_as_told(completed, tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "fields", [{}, {"seconds": "4"}, {"seconds": 2}, {"num_frames": 7}, {"num_frames": 49, "fps": 60}, {"duration": 2}]
)
def test_a_strict_client_takes_seconds_for_a_whole_number(http: httpx.Client, fields: dict[str, object]) -> None:
    video = accepted(http.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 2} | fields))
    assert isinstance(video["seconds"], str)
    assert int(video["seconds"]) >= 1
    asked = fields.get("seconds") or fields.get("duration")
    assert asked is None or int(video["seconds"]) == int(str(asked))


@pytest.mark.parametrize("fields", [{"num_frames": 7}, {"num_frames": 19, "fps": 30}, {"seconds": "1"}, {"seconds": 9}])
def test_a_video_is_as_long_as_it_is_told(http: httpx.Client, tmp_path: Path, fields: dict[str, object]) -> None:
    body = {"prompt": PROMPT, "size": "64x48", "num_inference_steps": 2} | fields
    video = polled(http, accepted(http.post("/v1/videos", json=body))["id"])
    (tmp_path / "clip.mp4").write_bytes(http.get(f"/v1/videos/{video['id']}/content").content)
    assert_as_told(video, tmp_path / "clip.mp4")


def test_the_video_in_the_answer(http: httpx.Client, tmp_path: Path) -> None:
    """POST /v1/videos/sync as clients of vllm-omni and GPUStack send it."""
    parts = {"prompt": PROMPT, "num_frames": "13", "fps": "12", "flow_shift": "5.0", "extra_params": '{"seed": 3}'}
    answer = http.post("/v1/videos/sync", files={name: (None, text) for name, text in parts.items()})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4"), answer.text
    (tmp_path / "clip.mp4").write_bytes(answer.content)
    video = accepted(http.get(f"/v1/videos/{answer.headers['x-video-id']}"))
    assert (video["seed"], video["ignored_parameters"]) == (3, ["flow_shift"])
    assert_as_told(video, tmp_path / "clip.mp4")


def test_the_dialect_of_generations(http: httpx.Client, tmp_path: Path) -> None:
    body = {"model": "mochi-1", "prompt": PROMPT, "size": "720P", "duration": 2, "aspect_ratio": "16:9", "mode": "std"}
    answer = http.post("/v1/videos/generations", json=body | {"images": []})
    assert answer.status_code == 202, answer.text
    where = f"/v1/videos/generations/{answer.json()['id']}"
    wait_until(lambda: accepted(http.get(where))["status"] == "completed")
    (tmp_path / "clip.mp4").write_bytes(http.get(f"{where}/download").content)
    assert_as_told(accepted(http.get(where)), tmp_path / "clip.mp4")


def test_an_image_is_refused_and_no_video_is_made(http: httpx.Client) -> None:
    """n8n with an input reference."""
    files: dict[str, tuple[str | None, str | bytes]] = {"prompt": (None, PROMPT), "input_reference": ("a.png", b"PNG")}
    answer = http.post("/v1/videos", files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")
