"""The program that Ray Serve runs as HAProxy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.local import haproxy_wrapper

FRONT = haproxy_wrapper.Front(ports=[9101, 8404], head_timeout_s=10, connections_per_address=512)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("parent_runs", [True, False])
def test_it_becomes_the_program_unless_its_parent_has_ended(tmp_path: Path, parent_runs: bool) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("listen stats\n  bind *:8404\n")
    parent = os.getpid() if parent_runs else 1
    command = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, FRONT.as_argument(), "/bin/echo", str(parent)]
    done = subprocess.run([*command, "-db", "-f", str(config)], capture_output=True, text=True, check=True)
    assert done.stdout == (f"-db -f {config}\n" if parent_runs else "")
    assert config.read_text() == "listen stats\n  bind 127.0.0.1:8404\n"
