"""What is stopped below a server is killed, whatever it is."""

import os
import signal
import subprocess
import sys

from serve_app.local.processes.stopped import StoppedProcesses
from tests.support.waiting import wait_until


def test_a_stopped_process_is_killed_and_others_are_not() -> None:
    program = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]
    stopped, spared, running = (subprocess.Popen(program) for _ in range(3))
    try:
        for process in (stopped, spared):
            os.kill(process.pid, signal.SIGSTOP)
        looks = StoppedProcesses(look_s=0.01, limit_s=0.05)

        def killed() -> bool:
            looks.kill(spare=[spared.pid])
            return stopped.poll() is not None

        wait_until(killed)
        assert stopped.returncode == -signal.SIGKILL
        assert spared.poll() is None and running.poll() is None
    finally:
        for process in (stopped, spared, running):
            process.kill()
            process.wait()


def test_one_that_goes_on_in_time_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]) as process:
        try:
            looks = StoppedProcesses(look_s=1, limit_s=3)
            for _ in range(5):
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    os.kill(process.pid, number)
                    looks.kill(spare=[])
            assert process.poll() is None
        finally:
            process.kill()
