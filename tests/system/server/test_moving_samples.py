"""Samples that are stopped, parked, moved and resumed while the whole server runs."""

import os
import signal

import pytest

from tests.support.servers.server import Server, wait_ready
from tests.support.servers.steps import clip, wait_for_step
from tests.system.server.conftest import CHECKPOINT_S, STEP_S

PROMPT = "a red circle moving right"
STEPS = 64


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    """The clip that nothing happened to."""
    return clip(server, server.create(prompt=PROMPT, seed=5, num_inference_steps=STEPS)["id"])


def test_a_killed_sampler_loses_at_most_a_second(server: Server, undisturbed: bytes) -> None:
    video = server.create(prompt=PROMPT, seed=5, num_inference_steps=STEPS)
    # Steps enough are left for a busy machine to find the process and kill it before the last one.
    wait_for_step(server, video["id"], 25)
    server.kill("sampler")
    assert clip(server, video["id"]) == undisturbed
    steps_run, attempt, deaths = server.job_row(video["id"], "steps_run", "attempt", "deaths")
    assert (attempt, deaths) == (1, 1)
    assert steps_run - STEPS <= CHECKPOINT_S / STEP_S
    assert server.moves(video["id"]).count("completed") == 1
    wait_ready(server)


def test_sigterm_hands_the_sample_back(server: Server, undisturbed: bytes) -> None:
    video = server.create(prompt=PROMPT, seed=5, num_inference_steps=STEPS)
    wait_for_step(server, video["id"], 20)
    for pid in server.pids("sampler"):
        os.kill(pid, signal.SIGTERM)
    assert clip(server, video["id"]) == undisturbed
    assert server.job_row(video["id"], "steps_run", "attempt") == (STEPS, 1)
    wait_ready(server)


def test_a_video_can_be_watched_in_the_making(server: Server) -> None:
    video = server.create(prompt=PROMPT, num_inference_steps=200)
    wait_for_step(server, video["id"], 30)
    with server.client() as client:
        preview = client.get(f"/v1/videos/{video['id']}/content", params={"variant": "preview"})
        assert (preview.status_code, preview.headers["content-type"]) == (200, "image/webp"), preview.text
        assert preview.content[:4] == b"RIFF" and preview.content[8:12] == b"WEBP"
        client.post(f"/v1/videos/{video['id']}/cancel").raise_for_status()


def test_a_sampler_tells_what_fits_its_memory(server: Server) -> None:
    with server.client() as client:
        (sampler, *_) = client.get("/health").json()["devices"]["sampling"]
    assert sampler["max_tokens"] > 352, "the largest clip of the profile fits this machine"


def test_a_cancelled_job_leaves_its_slot_and_stays_cancelled(server: Server) -> None:
    video = server.create(prompt=PROMPT, num_inference_steps=200)
    seen = wait_for_step(server, video["id"], 3)
    with server.client() as client:
        assert client.post(f"/v1/videos/{video['id']}/cancel").json()["state"] == "cancelled"
    again = server.get(video["id"])
    assert (again["status"], again["error"]["code"]) == ("failed", "cancelled")
    assert seen < 200
    assert server.moves(video["id"])[-1] == "cancelled"
