"""The commands against a server with faults: what goes to stdout and stderr, exit codes, Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app
from tests.support import ROOT
from tests.support.commands import answer, call, started
from tests.support.http.api_stand_in import FILE, StandIn
from tests.support.waiting import PATIENCE_S, wait_until

PROMPT = "a red circle moving right"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MOCHI_SERVE_API_KEY", raising=False)


def test_generate_makes_and_fetches(api: StandIn) -> None:
    done = call(api.url, "generate", PROMPT, "-o", "out.mp4", "--seed", "7", "--size", "64x64", "--exact")
    assert (done.exit_code, done.stdout) == (0, "out.mp4\n"), done.stderr
    assert Path("out.mp4").read_bytes() == FILE
    (video,) = api.videos.values()
    assert (video["prompt"], video["seed"], video["size"], video["exact"]) == (PROMPT, 7, "64x64", True)


def test_all_fields_of_a_request_are_options(api: StandIn) -> None:
    given: dict[str, Any] = {
        "model": "m",
        "size": "1x1",
        "width": 1,
        "height": 2,
        "seconds": 1.5,
        "num_frames": 7,
        "fps": 3,
        "guidance_scale": 2.0,
        "seed": 0,
        "negative_prompt": "",
        "priority": "interactive",
        "webhook_url": "http://h",
        "cancel_after": "90s",
    }
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    call(api.url, "generate", PROMPT, "--no-wait", "--steps", "9", *options)
    (video,) = api.videos.values()
    assert given.items() <= video.items() and video["num_inference_steps"] == 9 and "exact" not in video


def test_what_is_not_given_is_left_to_the_server(api: StandIn) -> None:
    call(api.url, "generate", PROMPT, "--no-wait")
    assert json.loads([h for h in api.headers if "idempotency-key" in h][0]["content-length"]) == len(
        json.dumps({"prompt": PROMPT})
    )


def test_without_a_name_the_file_is_called_after_the_prompt(api: StandIn) -> None:
    done = call(api.url, "generate", PROMPT)
    assert done.stdout == "a-red-circle-moving-right-00000000.mp4\n" and Path(done.stdout.strip()).exists()
    Path("folder").mkdir()
    assert call(api.url, "generate", PROMPT, "-o", "folder").stdout.startswith("folder/a-red-circle")


def test_nothing_is_overwritten_and_nothing_made_for_it(api: StandIn) -> None:
    Path("out.mp4").write_text("mine")
    done = call(api.url, "generate", PROMPT, "-o", "out.mp4")
    assert (done.exit_code, Path("out.mp4").read_text(), api.videos) == (2, "mine", {}) and "--force" in done.stderr
    assert call(api.url, "generate", PROMPT, "-o", "none/out.mp4").exit_code == 2 and not api.videos
    assert call(api.url, "generate", PROMPT, "-o", "out.mp4", "--force").exit_code == 0
    assert Path("out.mp4").read_bytes() == FILE


def test_json_is_one_value_and_nothing_else(api: StandIn) -> None:
    video = answer(call(api.url, "generate", PROMPT, "-o", "a.mp4", "--json"))
    assert (video["status"], video["file"]) == ("completed", "a.mp4")
    video_id = video["id"]
    assert answer(call(api.url, "generate", PROMPT, "--no-wait", "--json"))["state"] == "queued"
    assert answer(call(api.url, "status", video_id, "--json"))["id"] == video_id
    assert answer(call(api.url, "models", "--json"))["data"] == [{"id": "mochi-1"}]
    downloaded = answer(call(api.url, "download", video_id, "--json", "-o", "b.mp4"))
    assert downloaded == {"id": video_id, "variant": "video", "file": "b.mp4", "bytes": len(FILE)}
    assert answer(call(api.url, "remix", video_id, "other", "--json"))["remixed_from_video_id"] == video_id
    assert answer(call(api.url, "enhance", video_id, "--json"))["enhanced_from_video_id"] == video_id
    listed = [json.loads(row) for row in call(api.url, "list", "--json").stdout.splitlines()]
    assert len(listed) == 4 and listed[-1]["id"] == video_id
    events = [json.loads(row) for row in call(api.url, "watch", video_id, "--json").stdout.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("progress", "done")
    assert answer(call(api.url, "delete", video_id, "--json"))["deleted"] is True


def test_errors_are_json_too(api: StandIn) -> None:
    missing = answer(call(api.url, "status", "video_0", "--json"), 1)
    assert missing["error"]["code"] == "video_not_found"
    assert answer(call("http://127.0.0.1:1", "models", "--json"), 4)["error"]["code"] == "server_unreachable"
    assert answer(call(api.url, "status", "no id", "--json"), 2)["error"]["type"] == "usage_error"


def test_a_failed_video_is_code_1_and_a_reason(api: StandIn) -> None:
    api.failing = {PROMPT}
    done = call(api.url, "generate", PROMPT)
    assert (done.exit_code, done.stdout, list(Path().iterdir())) == (1, "", [])
    assert "out_of_memory): It needs more memory." in done.stderr
    assert answer(call(api.url, "generate", PROMPT, "--json"), 1)["file"] is None
    assert call(api.url, "watch", next(iter(api.videos))).exit_code == 1


def test_keys_come_from_the_environment_and_are_never_shown(api: StandIn) -> None:
    api.api_key = "ms-right"
    assert call(api.url, "models", key="ms-right").exit_code == 0
    refused = call(api.url, "models", key="ms-wrong")
    assert refused.exit_code == 5 and "ms-wrong" not in refused.output
    assert call(api.url, "models").exit_code == 5
    assert call(api.url, "models", "--api-key", "ms-right", key="ms-wrong").exit_code == 0
    broken = call(api.url, "models", key="ms secret")
    assert broken.exit_code == 2 and "secret" not in broken.output
    assert "ms-right" not in call(api.url, "generate", "--help", key="ms-right").output


@pytest.mark.parametrize("command", ["generate", "batch", "list", "watch", "enhance", "remix", "download", "models"])
def test_help_tells_the_exit_codes(command: str) -> None:
    text = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    assert "Exit codes: 0 all went well" in text and "MOCHI_SERVE_URL" in text


def test_cancel_and_delete_take_many_and_tell_each(api: StandIn) -> None:
    for _ in range(3):
        call(api.url, "generate", PROMPT, "--no-wait")
    first, second, third = api.videos
    done = call(api.url, "cancel", first, "video_none", second)
    assert done.exit_code == 1 and done.stdout.splitlines() == [f"{first} is cancelled", f"{second} is cancelled"]
    assert "video_not_found" in done.stderr
    assert call(api.url, "delete", first, second, third).exit_code == 0 and not api.videos


def test_list_is_a_table_that_cuts_nothing_in_a_pipe(api: StandIn) -> None:
    prompt = "a [bold]circle[/bold] " + "and another " * 20
    for number in range(3):
        call(api.url, "generate", f"{prompt}{number}", "--no-wait")
    rows = call(api.url, "list", "--limit", "2").stdout.splitlines()
    assert rows[0].split()[:2] == ["id", "state"] and len(rows) == 3
    assert f"{prompt}2" in rows[1] and f"{prompt}1" in rows[2]
    assert len(call(api.url, "list", "--all").stdout.splitlines()) == 4


def test_watch_follows_several(api: StandIn) -> None:
    for _ in range(2):
        call(api.url, "generate", PROMPT, "--no-wait")
    done = call(api.url, "watch", *api.videos, *api.videos)
    assert done.exit_code == 0 and [f"{v} is completed" in done.stderr for v in api.videos] == [True, True]
    assert api.seen["events"] == 2


@pytest.mark.parametrize("cancels", [False, True])
def test_ctrl_c_asks_nothing_and_leaves_the_video_unless_it_is_to_cancel(api: StandIn, cancels: bool) -> None:
    api.hold = True
    process = started(api.url, "generate", PROMPT, "--json", *["--cancel-on-interrupt"] * cancels)
    wait_until(lambda: api.at_once)
    process.send_signal(signal.SIGINT)
    out, messages = process.communicate(timeout=PATIENCE_S)
    (video,) = api.videos.values()
    assert json.loads(out)["id"] == video["id"]
    assert (process.returncode, video["state"] == "cancelled") == (130, cancels), messages
    assert ("is cancelled" in messages) == cancels and (f"mochi-serve watch {video['id']}" in messages) != cancels
    assert "Traceback" not in messages


def test_a_server_that_goes_away_leaves_word_how_to_go_on(api: StandIn) -> None:
    api.breaks = [1, *[0] * 100]
    done = call(api.url, "generate", PROMPT, "--patience", "0.3")
    (video_id,) = api.videos
    assert done.exit_code == 4 and f"mochi-serve download {video_id}" in done.stderr


def test_batch_reads_stdin_and_options(api: StandIn) -> None:
    done = CliRunner().invoke(
        app,
        ["batch", "-", "-o", "out", "--steps", "5", "--url", api.url],
        input=f'{PROMPT}\n{{"prompt": "b", "fps": 3}}',
    )
    assert done.exit_code == 0, done.output
    assert {(v["prompt"], v["num_inference_steps"], v["priority"]) for v in api.videos.values()} == {
        (PROMPT, 5, "batch"),
        ("b", 5, "batch"),
    }
    assert CliRunner().invoke(app, ["batch", "-", "-o", "out", "--url", api.url], input="{").exit_code == 2


def test_a_terminal_gets_bars(api: StandIn) -> None:
    controller, terminal = pty.openpty()
    environment = os.environ | {"MOCHI_SERVE_URL": api.url, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150"}
    Path("prompts").write_text("a\nb\nc")
    api.failing = {"b"}
    api.pause_s = 0.3
    command = [sys.executable, "-m", "serve_app.cli.main", "batch", "prompts", "-o", "out"]
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 100_000):
            shown += chunk
    except OSError:
        # The terminal's other side is closed: the process has ended.
        pass
    os.close(controller)
    assert (process.communicate()[0], process.returncode) == (b"", 3)
    text = shown.decode()
    assert "all videos" in text and "step 3/20" in text and "line 2 failed (out_of_memory)" in text
    assert "2 of 3 videos are in out, 1 failed" in text
