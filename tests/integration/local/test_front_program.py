"""The program that the pods of a cluster run as HAProxy."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config import IngressSettings
from serve_app.local.front_program import FRONT_VARIABLE, cluster_front, script
from serve_app.local.ray_environment import haproxy_available

CONFIG = """defaults
    mode http

frontend http_frontend
    bind *:8000

backend default_backend
    http-request return status 404 content-type text/plain string "no route"

listen stats
  bind *:8404
frontend prometheus
    bind :9101
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")


def run(program: Path, folder: Path, environ: dict[str, str]) -> str:
    """What the program makes of Serve's configuration before it becomes HAProxy."""
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG)
    done = subprocess.run(
        [program, "-db", "-f", config], env=os.environ | environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"-db -f {config}\n"
    return config.read_text()


def test_it_closes_the_ports_and_answers_503_where_serve_says_404(tmp_path: Path) -> None:
    program = tmp_path / "front"
    program.write_text(script(cluster_front(IngressSettings()), "/bin/echo"))
    program.chmod(0o755)
    config = run(program, tmp_path, {FRONT_VARIABLE: ""})
    assert "bind 127.0.0.1:8404" in config and "bind 127.0.0.1:9101" in config and "bind *:8000" in config
    assert "return status 503 default-errorfiles" in config and "status 404" not in config
    assert "timeout http-request 10000ms" in config
    assert "unless { src 127.0.0.1 ::1 10.0.0.0/8 " in config


def test_the_environment_may_say_otherwise(tmp_path: Path) -> None:
    front = cluster_front(IngressSettings())
    program = tmp_path / "front"
    program.write_text(script(front, "/bin/echo"))
    program.chmod(0o755)
    config = run(program, tmp_path, {FRONT_VARIABLE: replace(front, head_timeout_s=3).as_argument()})
    assert "timeout http-request 3000ms" in config


@pytest.mark.skipif(not haproxy_available(), reason="HAProxy is for Linux")
def test_the_image_gets_a_program_that_runs_haproxy(tmp_path: Path) -> None:
    program = tmp_path / "front"
    subprocess.run([sys.executable, "-m", "serve_app.local.front_program", program], check=True)
    assert os.stat(program).st_mode & 0o777 == 0o755
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("HAProxy version")
