"""Where commands write a video besides plain files: links, pipes, devices, stdout."""

import os
import pty
import stat
import subprocess
import sys
import threading
import tty
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.commands import call
from tests.support.http.api_stand_in import FILE, StandIn
from tests.support.waiting import PATIENCE_S

PROMPT = "a red circle moving right"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOCHI_SERVE_API_KEY", raising=False)


class Reader(threading.Thread):
    """Reads a pipe or a device to its end, or as many bytes as there are to come."""

    def __init__(self, path: Path | int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.data = b""
        self.start()

    def run(self) -> None:
        with open(self._path, "rb", buffering=0) as file:
            while len(self.data) < len(FILE) and (chunk := file.read(1000)):
                self.data += chunk


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_written_to_and_stays_one(api: StandIn, force: bool) -> None:
    os.mkfifo("pipe")
    reader = Reader(Path("pipe"))
    done = call(api.url, "generate", PROMPT, "-o", "pipe", *["--force"] * force)
    assert (done.exit_code, done.stdout) == (0, "pipe\n"), done.stderr
    reader.join(PATIENCE_S)
    assert reader.data == FILE
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and os.listdir() == ["pipe"]


@pytest.mark.parametrize("force", [False, True])
def test_a_device_is_written_to_and_stays_one(api: StandIn, force: bool) -> None:
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    device = Path(os.ttyname(terminal))
    before = os.stat(device)
    reader = Reader(os.dup(controller))
    done = call(api.url, "generate", PROMPT, "-o", str(device), *["--force"] * force)
    assert done.exit_code == 0, done.stderr
    reader.join(PATIENCE_S)
    assert reader.data == FILE
    assert (os.stat(device).st_ino, os.stat(device).st_rdev) == (before.st_ino, before.st_rdev)
    os.close(controller)
    os.close(terminal)


def test_a_link_stays_and_its_file_is_replaced(api: StandIn) -> None:
    Path("real").mkdir()
    for name in ("old", "new"):
        Path(f"{name}.mp4").symlink_to(f"real/{name}.mp4")
    Path("real/old.mp4").write_text("mine")
    assert call(api.url, "generate", PROMPT, "-o", "old.mp4").exit_code == 2 and not api.videos
    for name in ("old", "new"):
        done = call(api.url, "generate", PROMPT, "-o", f"{name}.mp4", "--force")
        assert (done.exit_code, done.stdout) == (0, f"{name}.mp4\n"), done.stderr
        assert Path(f"{name}.mp4").is_symlink() and Path(f"real/{name}.mp4").read_bytes() == FILE
    assert sorted(os.listdir("real")) == ["new.mp4", "old.mp4"]


def test_a_link_in_a_circle_or_into_nothing_is_one_line(api: StandIn) -> None:
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("none/out.mp4")
    for name in ("circle", "nowhere"):
        done = call(api.url, "generate", PROMPT, "-o", name, "--force")
        assert (done.exit_code, len(done.stderr.splitlines()), api.videos) == (2, 1, {}), done.stderr


def test_stdout_gets_the_bytes_and_nothing_else(api: StandIn) -> None:
    done = _run(api, "{command} generate x -o -")
    assert (done.returncode, done.stdout == FILE) == (0, True), done.stderr
    assert b"sampling" in done.stderr
    assert os.listdir() == []


def _run(api: StandIn, line: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"MOCHI_SERVE_URL": api.url, "PYTHONPATH": str(ROOT)}
    shell = line.format(command=f"{sys.executable} -m serve_app.cli.main")
    return subprocess.run(shell, shell=True, capture_output=True, env=environment, timeout=PATIENCE_S)


def test_a_reader_of_stdout_that_ends_gets_no_traceback(api: StandIn) -> None:
    done = _run(api, "{command} generate x -o - | head -c 10")
    assert done.stdout == FILE[:10] and b"Traceback" not in done.stderr, done.stderr


def test_stdout_is_not_for_json_nor_the_name_of_a_batch(api: StandIn) -> None:
    Path("prompts").write_text("a")
    for command in (["generate", PROMPT, "-o", "-", "--json"], ["batch", "prompts", "-o", "-"]):
        assert call(api.url, *command).exit_code == 2 and not api.videos
