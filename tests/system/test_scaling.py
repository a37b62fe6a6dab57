"""Samples that move because their replicas are stopped by Serve: scaled down, or deployed anew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.servers.server import Server, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SETTINGS = {
    "MOCHI_SERVE__SAMPLING__CHECKPOINT_S": "1",
    "MOCHI_SERVE__SAMPLING__MIN_STEP_S": "0.05",
    "MOCHI_SERVE__SAMPLER__MAX_REPLICAS": "3",
    "MOCHI_SERVE__SAMPLER__TORCH_THREADS": "1",  # three with two each on two cores wait for one another
    "MOCHI_SERVE__SAMPLER__DOWNSCALE_DELAY_S": "1",
    "MOCHI_SERVE__MODEL__NUM_INFERENCE_STEPS__MAXIMUM": "10000",
}
# So small that three samplers keep up with MIN_STEP_S on two cores.
SMALL = {"prompt": "a red circle moving right", "size": "32x32", "num_frames": 7}


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose denoising steps take a while, with a checkpoint each second and up to three samplers."""
    with running_server(tmp_path_factory.mktemp("slow"), SETTINGS) as running:
        yield running


def each_ran_every_step_once(server: Server, steps: dict[str, int]) -> None:
    for video_id, count in steps.items():
        server.wait_for(video_id, "completed", timeout_s=400)
        assert server.job_row(video_id, "steps_run", "attempt") == (count, 1)
        assert server.moves(video_id).count("completed") == 1


def twenty_sampling(server: Server, counts: list[int]) -> dict[str, int]:
    """20 jobs, all of them in a sampler at once: others have filled three replicas before and make room."""
    others = [server.create(**SMALL, num_inference_steps=10_000)["id"] for _ in range(24)]
    for video_id in others:
        server.wait_for(video_id, "sampling")
    wait_for_samplers(server, 3)
    steps = {server.create(**SMALL, num_inference_steps=count)["id"]: count for count in counts}
    with server.client() as client:
        for video_id in others:
            client.post(f"/v1/videos/{video_id}/cancel").raise_for_status()
    for video_id in steps:
        server.wait_for(video_id, "sampling")
    return steps


def wait_for_samplers(server: Server, count: int) -> None:
    with server.client() as client:
        wait_until(lambda: len(client.get("/health").json()["devices"]["sampling"]) == count, server.log_tail)


def test_a_downscale_moves_what_it_stops(slow_server: Server) -> None:
    # The short ones end soon and leave work for two replicas; one is stopped when that has held for a while.
    steps = twenty_sampling(slow_server, [1500 if n % 3 else 100 for n in range(20)])
    each_ran_every_step_once(slow_server, steps)
    moved = [video_id for video_id in steps if slow_server.moves(video_id).count("sampling") > 1]
    assert moved, "no job was moved: nothing was tried"


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
