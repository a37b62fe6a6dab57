"""`mochi-serve batch` as a job on the cluster that serves: submitted by Ray's own command line, with its token."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clip_reader import colour_and_direction, read_frames
from tests.support.servers.server import Server

BIN = Path(sys.executable).parent
PROMPTS = ("a red circle moving right", "a blue square moving left", "a green circle moving up")
PATIENCE_S = 600


def submit(server: Server, *command: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, which waits for the end of the job, shows its log, and has its success as exit code."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(server.data / "ray-token")}
    address = f"http://127.0.0.1:{server.ports[1]}"
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", address, "--", *command],
        capture_output=True,
        text=True,
        env=os.environ | token,
        timeout=PATIENCE_S,
    )


@pytest.mark.slow
def test_a_batch_runs_as_a_ray_job_and_goes_on_in_a_second_one(server: Server, tmp_path: Path) -> None:
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps({"prompt": p, "seed": 3}) + "\n" for p in PROMPTS[:2]))
    command = [str(BIN / "mochi-serve"), "batch", str(prompts), "-o", str(folder), "--url", server.url]

    first = submit(server, *command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "[2/2] " in first.stdout and f"2 of 2 videos are in {folder}, 0 failed" in first.stdout
    assert "\x1b[2K" not in first.stdout, "a log shows no bars"

    prompts.write_text(prompts.read_text() + json.dumps({"prompt": PROMPTS[2], "seed": 3}) + "\n")
    second = submit(server, *command)
    assert f"3 of 3 videos are in {folder} (2 before), 0 failed" in second.stdout, second.stdout + second.stderr

    rows = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows) == sorted(PROMPTS)
    for row in rows:
        _, colour, _, _, direction = row["prompt"].split()
        assert colour_and_direction(read_frames(folder / row["file"])) == (colour, direction)
        assert server.get(row["video_id"])["priority"] == "batch"
