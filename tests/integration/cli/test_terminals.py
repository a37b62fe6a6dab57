"""Terminals that know no Unicode, and signals."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.commands import started
from tests.support.http.api_stand_in import StandIn
from tests.support.waiting import PATIENCE_S, wait_until

PROMPT = "a red circle é 🔴 " + "x" * 200


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOCHI_SERVE_API_KEY", raising=False)


@pytest.fixture
def ascii_only(api: StandIn) -> dict[str, str]:
    names = {"MOCHI_SERVE_URL": api.url, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    return os.environ | names | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("command", ["batch", "list"])
def test_a_terminal_that_knows_ascii_alone_gets_no_traceback(
    api: StandIn, ascii_only: dict[str, str], command: str
) -> None:
    api.add_video({"prompt": PROMPT})
    Path("prompts").write_text(f"{PROMPT}\nfails é")
    api.failing = {"fails é"}
    api.pause_s = 0.1
    arguments = {
        "batch": ["batch", "prompts", "-o", "out é"],
        "list": ["list"],
    }[command]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli.main", *arguments], stdout=terminal, stderr=terminal, env=ascii_only
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 100_000):
            shown += chunk
    except OSError:
        # The terminal's other side is closed: the process has ended.
        pass
    os.close(controller)
    code = process.wait(PATIENCE_S)
    assert (code, b"Traceback" in shown) == (3 if command == "batch" else 0, False), shown.decode()


def test_another_signal_leaves_word_as_ctrl_c_does(api: StandIn) -> None:
    api.hold = True
    # Who runs the tests may have them go on when the terminal closes (nohup), and a process inherits that.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = started(api.url, "generate", PROMPT)
    finally:
        signal.signal(signal.SIGHUP, inherited)
    wait_until(lambda: api.at_once)
    process.send_signal(signal.SIGHUP)
    _, messages = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 129 and "mochi-serve watch" in messages
    assert "Traceback" not in messages


def test_a_second_signal_ends_a_command_at_once_and_with_a_word(api: StandIn) -> None:
    os.mkfifo("prompts")
    process = started(api.url, "batch", "prompts", "-o", "out")
    with open("prompts", "wb"):  # it is there and waits for lines
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    _, messages = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "ended at once by a second" in messages and "Traceback" not in messages


def test_a_server_that_has_not_begun_ends_with_a_word() -> None:
    os.mkfifo("serve.yaml")
    process = started("", "serve", "--config", "serve.yaml")
    with open("serve.yaml", "wb"):
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert messages.startswith("mochi-serve: interrupted by Ctrl-C") and "Traceback" not in messages


@contextmanager
def top_in_a_terminal(api: StandIn) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`top` on a terminal of 80x24, once it shows something; and the terminal's other side."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    environment = os.environ | {"MOCHI_SERVE_URL": api.url, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "serve_app.cli.main", "top", "--every", "0.2"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=environment)
    try:
        shown = b""
        while b"0 running, 0 waiting" not in shown:
            shown += os.read(controller, 100_000)
        assert b"\x1b[?1049h" in shown, "a screen of its own"
        yield process, controller
        assert termios.tcgetattr(terminal) == before, "keys are shown and lines are read as before"
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        os.close(terminal)
        os.close(controller)


def test_top_ends_by_a_key_and_leaves_the_terminal_as_it_was(api: StandIn) -> None:
    with top_in_a_terminal(api) as (process, controller):
        asked = api.seen["status"]
        wait_until(lambda: os.read(controller, 100_000) and api.seen["status"] > asked + 1)
        os.write(controller, b"xq")
        assert process.wait(PATIENCE_S) == 0


def test_top_ends_by_a_signal_as_other_commands_do(api: StandIn) -> None:
    with top_in_a_terminal(api) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None and b"interrupted by Ctrl-C" in process.stderr.read()


def test_top_in_a_pipe_is_printed_once_without_colours(api: StandIn) -> None:
    done = started(api.url, "top")
    text, errors = done.communicate(timeout=PATIENCE_S)
    assert (done.returncode, errors) == (0, "") and "0 running, 0 waiting" in text and "\x1b" not in text
    assert api.seen["status"] == 1
