"""No process is left below this one."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.waiting import gone

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

# Two sleepers: one that its parent leaves behind, in a session of its own, and one that ignores SIGTERM.
CODE = """
import subprocess, sys
import psutil
from serve_app.local.processes import descendants
descendants.adopt_orphans()
subprocess.run(["sh", "-c", "setsid sleep 1000 & echo $!"])
stubborn = ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done"]
subprocess.Popen(stubborn)
sys.stdin.readline()
{end}
print("left", psutil.Process().children(recursive=True))
"""


@pytest.mark.parametrize("end", ["descendants.end_all(0.3)", "descendants.kill_all()"])
def test_orphans_and_the_stubborn_end(end: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", CODE.format(end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        said, _ = process.communicate("go on\n", timeout=60)
    assert said == "left []\n"
    assert gone(pids)
