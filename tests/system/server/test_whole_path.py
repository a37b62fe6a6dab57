"""From a prompt to a video through every real part: HTTP, Ray Serve, SQL, the object store, the model, ffmpeg."""

import signal
from pathlib import Path

import openai
import psutil
import pytest

from serve_app.local.preflight import is_free
from tests.support.clip_reader import colour_and_direction, is_faststart, probe, read_frames
from tests.support.servers.server import Server, running_server

SLOW = {"size": "128x64", "num_frames": 61, "num_inference_steps": 200}
ONCE = ["encoding", "queued", "sampling", "queued", "decoding", "completed"]


def test_a_prompt_becomes_its_video(server: Server, tmp_path: Path) -> None:
    video = server.create(prompt="a blue square moving left", seed=7)
    assert video["status"] in ("queued", "in_progress")
    done = server.wait_for(video["id"], "completed")
    assert (done["status"], done["progress"], done["size"]) == ("completed", 100, "96x96")
    path = server.download(video["id"], tmp_path / "clip.mp4")
    stream = probe(path)
    assert (stream.codec, stream.pixel_format) == ("h264", "yuv420p")
    assert (stream.width, stream.height, stream.fps) == (96, 96, 24)
    assert is_faststart(path)
    frames = read_frames(path)
    assert len(frames) == 37
    assert colour_and_direction(frames) == ("blue", "left")
    assert server.moves(video["id"]) == ONCE


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("a red circle moving right", ("red", "right")),
        ("a green circle moving up", ("green", "up")),
        ("a yellow square moving down", ("yellow", "down")),
    ],
)
def test_other_prompts_give_other_videos(server: Server, tmp_path: Path, prompt: str, seen: tuple[str, str]) -> None:
    video = server.create(prompt=prompt, seed=3)
    server.wait_for(video["id"], "completed")
    assert colour_and_direction(read_frames(server.download(video["id"], tmp_path / "clip.mp4"))) == seen


def test_the_same_seed_gives_the_same_bytes(server: Server, tmp_path: Path) -> None:
    clips = []
    for n in range(2):
        video = server.create(prompt="a red circle moving right", seed=11)
        server.wait_for(video["id"], "completed")
        clips.append(server.download(video["id"], tmp_path / f"{n}.mp4").read_bytes())
    assert clips[0] == clips[1]


def test_asked_size_length_and_rate_are_kept(server: Server, tmp_path: Path) -> None:
    video = server.create(prompt="a red circle moving right", size="96x48", num_frames=13, fps=12)
    server.wait_for(video["id"], "completed")
    path = server.download(video["id"], tmp_path / "clip.mp4")
    stream = probe(path)
    assert (stream.width, stream.height, stream.fps, len(read_frames(path))) == (96, 48, 12, 13)


def test_the_openai_package_makes_a_video(server: Server, tmp_path: Path) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x")
    video = client.videos.create_and_poll(
        model="mochi-1",
        prompt="a red circle moving right",
        size="64x64",  # type: ignore[arg-type]
        seconds="1",  # type: ignore[arg-type]
        extra_body={"seed": 7},
    )
    assert (video.status, video.size, video.seconds) == ("completed", "64x64", "1")
    path = tmp_path / "clip.mp4"
    client.videos.download_content(video.id).write_to_file(path)
    assert colour_and_direction(read_frames(path)) == ("red", "right")
    poster = client.videos.download_content(video.id, variant="thumbnail").read()
    assert poster[:4] == b"RIFF" and poster[8:12] == b"WEBP"
    client.close()


def test_the_short_routes_make_a_video(server: Server) -> None:
    with server.client() as client:
        accepted = client.post("/generate", json={"text": "a green square moving up"})
        assert accepted.status_code == 202
        video_id = accepted.json()["id"]
        server.wait_for(video_id, "completed")
        assert client.get(f"/status/{video_id}").json()["status"] == "completed"
        assert client.get(f"/download/{video_id}").headers["content-type"] == "video/mp4"
        assert video_id in client.get("/jobs").text
        assert client.get("/ready").status_code == 200


@pytest.mark.slow
def test_a_job_outlives_the_whole_server(tmp_path: Path) -> None:
    with running_server(tmp_path) as first:
        earlier = first.create(prompt="a red circle moving right", seed=7)
        first.wait_for(earlier["id"], "completed")
        video = first.create(prompt="a blue square moving left", seed=7, **SLOW)
        first.wait_for(video["id"], "sampling")
        below = [process.pid for process in first.descendants()]
        assert first.stop(signal.SIGINT) == 0, first.log_tail()
        assert [pid for pid in below if psutil.pid_exists(pid)] == []
        assert [port for port in first.ports if not is_free(port)] == []
        assert not (first.data / "lock").exists()
    with running_server(tmp_path) as second:
        second.wait_for(video["id"], "completed")
        assert second.moves(video["id"]).count("completed") == 1
        with second.client() as client:
            assert [v["id"] for v in client.get("/v1/videos").json()["data"]] == [video["id"], earlier["id"]]
        frames = read_frames(second.download(video["id"], tmp_path / "clip.mp4"))
        assert frames.shape == (61, 64, 128, 3)
        seen = colour_and_direction(read_frames(second.download(earlier["id"], tmp_path / "earlier.mp4")))
        assert seen == ("red", "right")
