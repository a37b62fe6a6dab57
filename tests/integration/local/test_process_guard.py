"""The guardian: what it starts ends with the one who asked for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.local.processes.process_guard import guarded
from tests.support import ROOT
from tests.support.waiting import gone

SHELL_THAT_IGNORES_TERM = "trap '' TERM INT HUP; echo $$; while :; do sleep 0.05; done"


def _start(command: list[str], grace_s: float = 5) -> subprocess.Popen[str]:
    return subprocess.Popen(guarded(command, grace_s), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _told_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_is_passed_on(code: int) -> None:
    with _start(["sh", "-c", f"exit {code}"]) as guardian:
        assert guardian.wait() == code


def test_a_signal_that_ended_the_command_is_told() -> None:
    with _start(["sh", "-c", "kill -9 $$"]) as guardian:
        assert guardian.wait() == 128 + signal.SIGKILL


def test_a_command_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with _start(["/no/such/command"]) as guardian:
        assert guardian.wait() == 127
    assert "cannot run /no/such/command: No such file" in capfd.readouterr().err


def test_arguments_and_environment_arrive() -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['MARK'], sys.stdin.read() == '')"
    done = subprocess.run(
        guarded([sys.executable, "-c", code, "a b", "--flag"], 1),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "MARK": "here"},
    )
    # The pipe was closed from the start: the command may have been stopped before it could speak.
    assert done.returncode in (0, 128 + signal.SIGTERM)
    assert done.stdout in ("['a b', '--flag'] here True\n", "")


def test_the_command_is_asked_to_end_when_the_pipe_closes() -> None:
    with _start(["sh", "-c", "trap 'exit 3' TERM; echo $$; while :; do sleep 0.05; done"]) as guardian:
        pid = _told_pid(guardian)
        assert guardian.stdin is not None
        guardian.stdin.close()
        assert guardian.wait() == 3
        assert gone([pid])


def test_a_command_that_will_not_end_is_killed() -> None:
    with _start(["sh", "-c", SHELL_THAT_IGNORES_TERM], 0.2) as guardian:
        pid = _told_pid(guardian)
        assert guardian.stdin is not None
        guardian.stdin.close()
        assert guardian.wait() == 128 + signal.SIGKILL
        assert gone([pid])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guardian_ends_the_command(number: signal.Signals) -> None:
    with _start(["sh", "-c", "echo $$; exec sleep 1000"]) as guardian:
        pid = _told_pid(guardian)
        guardian.send_signal(number)
        assert guardian.wait() == 128 + signal.SIGTERM
        assert gone([pid])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_a_killed_guardian_takes_the_command_with_it() -> None:
    with _start(["sh", "-c", SHELL_THAT_IGNORES_TERM]) as guardian:
        pid = _told_pid(guardian)
        guardian.kill()
        guardian.wait()
        assert gone([pid])


def test_the_command_ends_when_the_asking_process_is_killed(tmp_path: Path) -> None:
    asking = tmp_path / "asking.py"
    asking.write_text(
        "import subprocess, sys\n"
        "from serve_app.local.processes.process_guard import guarded\n"
        "command = ['sh', '-c', 'echo $$; exec sleep 1000']\n"
        "subprocess.Popen(guarded(command, 1), stdin=subprocess.PIPE).wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, asking], stdout=subprocess.PIPE, text=True, env=environment) as process:
        pid = _told_pid(process)
        process.kill()
    assert gone([pid])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_it_is_small() -> None:
    with _start(["sh", "-c", "echo $$; exec sleep 1000"]) as guardian:
        _told_pid(guardian)
        rollup = Path(f"/proc/{guardian.pid}/smaps_rollup").read_text()
        private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
        guardian.terminate()
    assert private < 12_000, "kilobytes"
