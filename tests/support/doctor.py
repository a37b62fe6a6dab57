"""What the checks of the doctor look at in tests: the included profile, with what a test lays over it."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from serve_app.config import AppArgs
from serve_app.doctor.finding import Check, Finding
from serve_app.doctor.runner import examine
from serve_app.doctor.surroundings import Surroundings
from serve_app.local.plan import LaunchPlan
from serve_app.local.ray_environment import HAPROXY_PORTS
from tests.support import ROOT
from tests.support.servers.ports import free_block, free_ports

SHAPES = ROOT / "models" / "shapes"


@cache
def _ports() -> tuple[int, list[int]]:
    """The store's first one and single ones, the same for all patients of this process: nothing is started on them, and
    there are not that many."""
    return free_block(), free_ports(2 + len(HAPROXY_PORTS))


def patient(tmp_path: Path, settings: Mapping[str, Any] | None = None, **more: Any) -> Surroundings:
    """A machine with the included profile, a data folder and ports of its own; nothing runs.

    Args:
        settings: a tree laid over the profile.
        more: fields of Surroundings.
    """
    own = {"data_dir": str(tmp_path / "data"), "model": {"source": str(SHAPES)}}
    block, (port, dashboard, *front) = _ports()
    tree = {**own, "storage": {"local_port": block}, **(settings or {})}
    if settings and "model" in settings:
        tree["model"] = {"source": str(SHAPES), **settings["model"]}
    loaded = AppArgs(config=str(ROOT / "configs" / "shapes.yaml"), settings=tree).load(environ={})
    environ = dict(zip(HAPROXY_PORTS, map(str, front), strict=True))
    plan = LaunchPlan({"http_options": {"host": "127.0.0.1", "port": port}}, loaded, dashboard)
    return replace(Surroundings(plan, environ=environ), **more)


def look(check: Check, surroundings: Surroundings) -> dict[str, Finding]:
    """What the check finds, by name."""
    return {finding.name: finding for finding in examine(surroundings, [check])}


def only(looked: Iterator[Finding]) -> Finding:
    """The one finding of a check."""
    (finding,) = looked
    return finding


def by_name(looked: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in looked}


class FakeChild:
    """Answers in the place of a child process; what it was asked is kept."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, name: str, *arguments: str, limit_s: float) -> dict[str, Any]:
        self.asked.append((name, *arguments))
        answer = self._answers[name]
        if isinstance(answer, Exception):
            raise answer
        found: dict[str, Any] = answer
        return found


@contextmanager
def stopped_listener() -> Iterator[tuple[int, int]]:
    """A process that listens and was stopped; gives its pid and port."""
    code = (
        "import socket, time\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "time.sleep(9999)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
