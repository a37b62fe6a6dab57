"""The `openai` packages for Python, newest and oldest, and for Node, each in its own environment."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT
from tests.support.clients.clips import assert_as_told
from tests.support.clients.environments import NEWEST, NODE, OLDEST, PROGRAMS, Environment
from tests.support.clip_reader import colours, read_frames
from tests.support.servers.server import Server

RUNS = [
    pytest.param(NEWEST, "openai_program.py", id="python-newest"),
    pytest.param(OLDEST, "openai_program.py", id="python-oldest", marks=pytest.mark.slow),
    pytest.param(NODE, "openai_program.mjs", id="node"),
]


@pytest.mark.parametrize(("environment", "program"), RUNS)
def test_the_package_does_all_it_can(server: Server, tmp_path: Path, environment: Environment, program: str) -> None:
    told = environment.told(program, server.url, tmp_path)
    assert told["created"]["status"] == "queued"
    for name in ("created", "own", "remix"):
        video = told["completed" if name == "created" else name]
        assert_as_told(video, tmp_path / f"{name}.mp4")
        assert int(video["seconds"]) >= 1
    completed, own, remix = told["completed"], told["own"], told["remix"]
    # The model is far smaller than what the package asks for by default; it says so and makes what it can.
    assert (completed["model"], completed["requested_size"], completed["requested_seconds"]) == (
        "mochi-1",
        "1280x720",
        "4",
    )
    assert completed["ignored_parameters"] == []
    # It was made without a seed, and of all seeds a few in a hundred move another way.
    assert "red" in colours(read_frames(tmp_path / "created.mp4"))
    assert (tmp_path / "thumbnail.webp").read_bytes()[8:12] == b"WEBP"
    assert (own["seed"], own["size"], own["num_inference_steps"], own["fps"]) == (7, "64x64", 4, 12)
    assert (remix["remixed_from_video_id"], remix["seed"]) == (completed["id"], completed["seed"])
    assert told["retrieved"] == remix
    assert told["listed"] == [remix["id"], own["id"], completed["id"]]
    assert (told["deleted"]["id"], told["deleted"]["deleted"]) == (remix["id"], True)
    assert told["errors"] == [
        ["NotFoundError", "video_id", "video_not_found"],
        ["NotFoundError", "video_id", "video_not_found"],
        ["BadRequestError", "num_frames", "invalid_value"],
        ["BadRequestError", "num_inference_step", "unknown_parameter"],
        ["BadRequestError", "input_reference", "unsupported_parameter"],
        ["BadRequestError", "model", "model_not_found"],
    ]


def test_the_oldest_package_is_the_one_that_pyproject_allows() -> None:
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    (allowed,) = [Requirement(line).specifier for line in dev if Requirement(line).name == "openai"]
    assert str(allowed) == ">=2.2"
    assert "openai==2.2.0\n" in (PROGRAMS / "openai-oldest.txt").read_text()
