"""The commands against the real server."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clip_reader import colour_and_direction, read_frames
from tests.support.commands import answer, call, started
from tests.support.servers.server import ENDLESS, Server
from tests.support.waiting import PATIENCE_S, wait_until

PROMPT = "a red circle moving right"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MOCHI_SERVE_API_KEY", raising=False)


def test_a_prompt_becomes_its_file_by_the_real_server(server: Server) -> None:
    done = call(server.url, "generate", "a blue square moving left", "--seed", "7", "-o", "clip.mp4")
    assert (done.exit_code, done.stdout) == (0, "clip.mp4\n"), done.stderr
    assert colour_and_direction(read_frames(Path("clip.mp4"))) == ("blue", "left")


def test_remix_enhance_and_all_files_by_the_real_server(server: Server) -> None:
    first = answer(call(server.url, "generate", PROMPT, "--seed", "3", "--json"))
    other = answer(call(server.url, "remix", first["id"], "a green circle moving up", "--json"))
    better = answer(call(server.url, "enhance", first["id"], "--steps", "24", "--json"))
    assert (other["seed"], other["remixed_from_video_id"]) == (3, first["id"])
    assert colour_and_direction(read_frames(Path(other["file"]))) == ("green", "up")
    assert (better["num_inference_steps"], better["enhanced_from_video_id"]) == (24, first["id"])
    for variant in ("thumbnail", "spritesheet"):
        downloaded = answer(
            call(server.url, "download", first["id"], "--variant", variant, "--json", "-o", f"{variant}.webp")
        )
        assert Path(downloaded["file"]).read_bytes()[8:12] == b"WEBP"
    listed = [json.loads(row) for row in call(server.url, "list", "--limit", "3", "--json").stdout.splitlines()]
    assert [video["id"] for video in listed] == [better["id"], other["id"], first["id"]]
    assert "mochi-1" in call(server.url, "models").stdout


def test_watch_cancel_and_delete_by_the_real_server(server: Server) -> None:
    video_id = call(server.url, "generate", PROMPT, "--steps", str(ENDLESS), "--no-wait").stdout.strip()
    watching = started(server.url, "watch", video_id, "--json")
    assert watching.stdout is not None
    events = [json.loads(watching.stdout.readline())]
    while (events[-1]["type"], events[-1].get("state")) != ("progress", "sampling"):
        events.append(json.loads(watching.stdout.readline()))
    assert answer(call(server.url, "cancel", video_id, "--json"))["state"] == "cancelled"
    out, _ = watching.communicate(timeout=PATIENCE_S)
    events += [json.loads(row) for row in out.splitlines()]
    assert (watching.returncode, events[-1]["type"], events[-1]["video"]["state"]) == (1, "done", "cancelled")
    states = [event["state"] for event in events if event["type"] == "state"]
    assert states[0] == "queued" and "sampling" in states
    assert call(server.url, "delete", video_id).exit_code == 0
    assert call(server.url, "status", video_id).exit_code == 1


def test_a_killed_batch_is_taken_up_by_the_real_server(server: Server) -> None:
    prompts = [f"a {c} circle moving {d}" for c in ("red", "green", "blue") for d in ("up", "down")]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "seed": 1}) + "\n" for p in prompts))
    before = {video["id"] for video in _all(server)}
    arguments = ["batch", "prompts.jsonl", "-o", "out", "--steps", "30", "--concurrency", "3"]
    process = started(server.url, *arguments)
    results = Path("out/results.jsonl")
    wait_until(lambda: results.exists() and results.read_bytes().count(b"\n") >= 1)
    process.kill()
    process.communicate()
    assert results.read_bytes().count(b"\n") < len(prompts)
    done = call(server.url, *arguments)
    assert done.exit_code == 0, done.output
    made = [video for video in _all(server) if video["id"] not in before]
    assert sorted(video["prompt"] for video in made) == sorted(prompts)
    rows = [json.loads(row) for row in results.read_text().splitlines()]
    assert {row["video_id"] for row in rows} == {video["id"] for video in made}
    for row in rows:
        colour, direction = row["prompt"].split()[1], row["prompt"].split()[-1]
        assert colour_and_direction(read_frames(Path("out") / row["file"])) == (colour, direction)


def _all(server: Server) -> list[dict[str, Any]]:
    return [json.loads(row) for row in call(server.url, "list", "--all", "--json").stdout.splitlines()]
