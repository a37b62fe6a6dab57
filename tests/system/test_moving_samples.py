"""Samples that are stopped, parked, moved and resumed while the whole server runs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.servers.server import Server, running_server, wait_ready
from tests.support.waiting import wait_until

STEP_S = 0.05
SETTINGS = {
    "MOCHI_SERVE__SAMPLING__CHECKPOINT_S": "1",
    "MOCHI_SERVE__SAMPLING__MIN_STEP_S": str(STEP_S),
    "MOCHI_SERVE__SAMPLER__MAX_REPLICAS": "3",
    "MOCHI_SERVE__SAMPLER__DOWNSCALE_DELAY_S": "1",
    "MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": "10000",
}
PROMPT = "a red circle moving right"


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose denoising steps take a while, with a checkpoint each second."""
    with running_server(tmp_path_factory.mktemp("slow"), SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(slow_server: Server) -> bytes:
    """The clip of 64 steps that nothing happened to."""
    return clip(slow_server, slow_server.create(prompt=PROMPT, seed=5, num_inference_steps=64)["id"])


def clip(server: Server, video_id: str) -> bytes:
    server.wait_for(video_id, "completed")
    with server.client() as client:
        return client.get(f"/v1/videos/{video_id}/content").raise_for_status().content


def wait_for_step(server: Server, video_id: str, step: int) -> int:
    """Returns the step that was seen, which may be a later one."""
    seen = 0

    def is_there() -> bool:
        nonlocal seen
        seen = int(server.get(video_id)["step"])
        return seen >= step

    wait_until(is_there, server.log_tail)
    return seen


def test_a_killed_sampler_loses_at_most_a_second(slow_server: Server, undisturbed: bytes) -> None:
    video = slow_server.create(prompt=PROMPT, seed=5, num_inference_steps=64)
    # Steps enough are left for a busy machine to find the process and kill it before the last one.
    wait_for_step(slow_server, video["id"], 25)
    slow_server.kill("sampler")
    assert clip(slow_server, video["id"]) == undisturbed
    steps_run, attempt, deaths = slow_server.job_row(video["id"], "steps_run", "attempt", "deaths")
    assert (attempt, deaths) == (1, 1)
    assert steps_run - 64 <= 1 / STEP_S
    assert slow_server.moves(video["id"]).count("completed") == 1
    wait_ready(slow_server)


def test_sigterm_hands_the_sample_back(slow_server: Server, undisturbed: bytes) -> None:
    video = slow_server.create(prompt=PROMPT, seed=5, num_inference_steps=64)
    wait_for_step(slow_server, video["id"], 20)
    for pid in slow_server.pids("sampler"):
        os.kill(pid, signal.SIGTERM)
    assert clip(slow_server, video["id"]) == undisturbed
    assert slow_server.job_row(video["id"], "steps_run", "attempt") == (64, 1)
    wait_ready(slow_server)


def test_a_video_can_be_watched_in_the_making(slow_server: Server) -> None:
    video = slow_server.create(prompt=PROMPT, num_inference_steps=200)
    wait_for_step(slow_server, video["id"], 30)
    with slow_server.client() as client:
        preview = client.get(f"/v1/videos/{video['id']}/content", params={"variant": "preview"})
        assert (preview.status_code, preview.headers["content-type"]) == (200, "image/webp"), preview.text
        assert preview.content[:4] == b"RIFF" and preview.content[8:12] == b"WEBP"
        client.post(f"/v1/videos/{video['id']}/cancel").raise_for_status()


def test_a_sampler_tells_what_fits_its_memory(slow_server: Server) -> None:
    with slow_server.client() as client:
        (sampler, *_) = client.get("/health").json()["devices"]["sampling"]
    assert sampler["max_tokens"] > 352, "the largest clip of the profile fits this machine"


def test_a_cancelled_job_leaves_its_slot_and_stays_cancelled(slow_server: Server) -> None:
    video = slow_server.create(prompt=PROMPT, num_inference_steps=200)
    seen = wait_for_step(slow_server, video["id"], 3)
    with slow_server.client() as client:
        assert client.post(f"/v1/videos/{video['id']}/cancel").json()["state"] == "cancelled"
    again = slow_server.get(video["id"])
    assert (again["status"], again["error"]["code"]) == ("failed", "cancelled")
    assert seen < 200
    assert slow_server.moves(video["id"])[-1] == "cancelled"


def each_ran_every_step_once(server: Server, steps: dict[str, int]) -> None:
    for video_id, count in steps.items():
        server.wait_for(video_id, "completed", timeout_s=180)
        assert server.job_row(video_id, "steps_run", "attempt") == (count, 1)
        assert server.moves(video_id).count("completed") == 1


def twenty_sampling(server: Server, counts: list[int]) -> dict[str, int]:
    """20 jobs, all of them in a sampler at once: others have filled three replicas before and make room."""
    others = [server.create(prompt=PROMPT, num_inference_steps=10_000)["id"] for _ in range(24)]
    for video_id in others:
        server.wait_for(video_id, "sampling")
    wait_for_samplers(server, 3)
    steps = {server.create(prompt=PROMPT, num_inference_steps=count)["id"]: count for count in counts}
    with server.client() as client:
        for video_id in others:
            client.post(f"/v1/videos/{video_id}/cancel").raise_for_status()
    for video_id in steps:
        server.wait_for(video_id, "sampling")
    return steps


def wait_for_samplers(server: Server, count: int) -> None:
    with server.client() as client:
        wait_until(lambda: len(client.get("/health").json()["devices"]["sampling"]) == count, server.log_tail)


@pytest.mark.slow
def test_a_downscale_moves_what_it_stops(slow_server: Server) -> None:
    steps = twenty_sampling(slow_server, [300 if n % 3 else 100 for n in range(20)])
    each_ran_every_step_once(slow_server, steps)
    moved = [video_id for video_id in steps if slow_server.moves(video_id).count("sampling") > 1]
    assert moved, "no job was moved: nothing was tried"


@pytest.mark.slow
def test_a_rolling_redeploy_moves_every_sample(slow_server: Server, tmp_path: Path) -> None:
    steps = twenty_sampling(slow_server, [300] * 20)
    before = set(slow_server.pids("sampler"))
    profile = tmp_path / "profile.yaml"
    text = (ROOT / "configs" / "shapes.yaml").read_text()
    profile.write_text(text.replace("sampling: {", "sampling: {preview_every: 7, "))
    slow_server.redeploy(profile)
    each_ran_every_step_once(slow_server, steps)
    assert not before & set(slow_server.pids("sampler"))
    assert min(slow_server.moves(video_id).count("sampling") for video_id in steps) > 1
