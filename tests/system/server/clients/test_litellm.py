"""LiteLLM's library and its proxy, with both providers that speak this API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.clients.clips import assert_as_told
from tests.support.clients.environments import LITELLM, PROXY_KEY
from tests.support.servers.server import Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow  # `make clients-test`: it loads for ten seconds in each process

PROMPT = "a red circle moving right"
PROVIDERS = ["openai", "hosted_vllm"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_library(server: Server, tmp_path: Path, provider: str) -> None:
    told = LITELLM.told("litellm_program.py", server.url, tmp_path, provider)
    videos = {name: server.get(video_id) for name, video_id in told["videos"].items()}
    for name, video in videos.items():
        assert_as_told(video, tmp_path / name)
    plain, shape, own, remix = (videos[f"{name}.mp4"] for name in ("plain", "shape", "own", "remix"))
    assert (plain["requested_size"], plain["requested_seconds"], plain["ignored_parameters"]) == (
        "1280x720",
        "4",
        ["user"],
    )
    width, height = map(int, shape["size"].split("x"))
    assert (shape["requested_size"], shape["seconds"], shape["ignored_parameters"]) == ("16:9", "1", [])
    assert 1.5 < width / height < 2 and shape["seed"] >= 0
    assert (own["seed"], own["fps"], own["num_inference_steps"], own["negative_prompt"]) == (7, 12, 4, "blue")
    assert (remix["remixed_from_video_id"], remix["prompt"], remix["fps"]) == (own["id"], "a blue square", 12)
    assert (told["status"]["status"], told["status"]["seconds"], told["status"]["size"]) == (
        "completed",
        "4",
        plain["size"],
    )
    assert told["listed"] == [remix["id"], own["id"], shape["id"], plain["id"]]
    assert "num_frames" in told["error"] and "6k + 1" in told["error"]


@pytest.fixture
def proxy(litellm_proxy: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=litellm_proxy, headers={"Authorization": f"Bearer {PROXY_KEY}"}, timeout=120) as client:
        yield client


def accepted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


def newest(server: Server) -> dict[str, Any]:
    with server.client() as client:
        video: dict[str, Any] = client.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    return video


@pytest.mark.parametrize("model", ["mochi-1", "mochi-1-vllm"])
def test_the_proxy(server: Server, proxy: httpx.Client, tmp_path: Path, model: str) -> None:
    """One model a provider, with what clients of a gateway add."""
    body = {"model": model, "prompt": PROMPT, "user": "somebody", "seed": -1, "aspect_ratio": "16:9", "seconds": "1"}
    video = accepted(proxy.post("/v1/videos", json=body | {"extra_params": {"num_inference_steps": 4, "fps": 12}}))
    ours = newest(server)
    assert (ours["num_inference_steps"], ours["fps"], ours["ignored_parameters"]) == (4, 12, ["user"])
    assert (video["object"], video["model"], video["size"]) == ("video", model, ours["size"])
    assert int(video["seconds"]) == 1

    answers: list[dict[str, Any]] = []

    def final() -> bool:
        answers.append(accepted(proxy.get(f"/v1/videos/{video['id']}")))
        return answers[-1]["status"] in ("completed", "failed")

    wait_until(final)
    content = proxy.get(f"/v1/videos/{video['id']}/content")
    assert content.status_code == 200, content.text
    (tmp_path / "clip.mp4").write_bytes(content.content)
    assert_as_told(server.get(ours["id"]), tmp_path / "clip.mp4")
    assert answers[-1]["status"] == "completed"

    remix = accepted(proxy.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "a blue square moving left"}))
    assert remix["id"] != video["id"]
    assert (newest(server)["remixed_from_video_id"], newest(server)["fps"]) == (ours["id"], 12)


@pytest.mark.parametrize("model", ["mochi-1", "mochi-1-vllm"])
def test_the_proxy_passes_errors_on(proxy: httpx.Client, model: str) -> None:
    answer = proxy.post("/v1/videos", json={"model": model, "prompt": PROMPT, "num_frames": 8})
    assert answer.status_code == 400
    assert "num_frames" in answer.text and "6k + 1" in answer.text
