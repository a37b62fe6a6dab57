"""A whole start and stop with a tiny application."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.local.preflight import holder, is_free
from tests.support import ROOT
from tests.support.servers.ports import free_ports
from tests.support.waiting import PATIENCE_S, gone

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

OPEN_FILES = 4096
SECRET = "a-secret-of-the-tiny-app"
TINY_APP = f"""
import logging, sys
from ray import serve
from deployments.logs.ids import log_ids
from deployments.logs.lines import NOTICE, begin_log
from deployments.settings import LogSettings

log = logging.getLogger("ray.serve")

@serve.deployment(ray_actor_options={{"num_cpus": 0}})
class Tiny:
    def __init__(self):
        begin_log(LogSettings(format="json"), "tiny", ["{SECRET}"])
        log.info("a line for the file")
        log.info("tiny: a replica is there", extra=NOTICE)

    async def __call__(self, request):
        if request.url.path == "/broken":
            print("printed by a library", file=sys.stderr)
            with log_ids(job="video_1", tenant="acme"):
                log.error("cannot use {SECRET}")
        return "hello"

app = Tiny.bind()

def broken(args):
    raise ValueError("no model here")
"""
# All that a terminal may show of a server that starts, fails once and is stopped.
PANEL = r"[╭│╰].*"
ON_TERMINAL = [
    r"In .*, other users of this machine could reach data; now only you can\.",
    r"Starting mochi-serve on http://127\.0\.0\.1:\d+ \.\.\.",
    r"tiny: a replica is there",
    PANEL,
    r"ERROR tiny: cannot use \*\*\*",
    r"(\^C)?Stopped\.",
]
CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - {{name: tiny, route_prefix: /, import_path: "{app}"}}
"""


class Launched:
    """A `mochi-serve serve` in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        app: str = "tiny_app:app",
        data: Path | None = None,
        terminal: bool = False,
        **environment: str,
    ) -> None:
        # As small as is usual in containers: HAProxy would ask for 10,270 files.
        limits = (min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), OPEN_FILES)
        (folder / "tiny_app.py").write_text(TINY_APP)
        self.data = data or folder / "data"
        self.ports = free_ports(4)
        (folder / "serve_config.yaml").write_text(CONFIG.format(port=self.ports[0], app=app))
        self._ours, theirs = os.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli.main", "serve", "--data", str(self.data)],
            cwd=folder,
            env={**_plain_environment(), **self._environment(), **environment},
            stdout=theirs,
            stderr=theirs,
            preexec_fn=(lambda: os.login_tty(theirs)) if terminal else None,
        )
        os.close(theirs)
        self._output = open(self._ours, encoding="utf-8", closefd=True)  # noqa: SIM115
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, limits)

    def _environment(self) -> dict[str, str]:
        _, dashboard, metrics, statistics = map(str, self.ports)
        return {
            "PYTHONPATH": str(ROOT),
            "MOCHI_SERVE_CONFIG": str(ROOT / "configs" / "shapes.yaml"),
            "MOCHI_SERVE__MODEL__SOURCE": str(ROOT / "models" / "shapes"),  # it starts in another folder
            "MOCHI_SERVE_DASHBOARD_PORT": dashboard,
            "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
            "RAY_SERVE_HAPROXY_STATS_PORT": statistics,
            # The tiny application stores nothing: no ports of a local store are needed.
            "MOCHI_SERVE__STORAGE__ENDPOINT": "127.0.0.1:9",
            "MOCHI_SERVE__STORAGE__ACCESS_KEY": "none",
            "MOCHI_SERVE__STORAGE__SECRET_KEY": "none",
        }

    def until(self, text: str) -> str:
        """Read what it says up to a line with the text."""
        said = ""
        for line in self._lines():
            said += line
            if text in line:
                return said
        raise AssertionError(f"it ended without saying {text!r}:\n{said}")

    def press_ctrl_c(self) -> None:
        """At its terminal."""
        os.write(self._ours, b"\x03")

    def _lines(self) -> Iterator[str]:
        # A terminal whose last process has ended cannot be read, where a pipe is at its end.
        with suppress(OSError):
            while line := self._output.readline():
                yield line

    def end(self) -> tuple[int, str]:
        """Its exit code and the rest of what it says."""
        said = "".join(self._lines())
        return self.process.wait(timeout=600), said

    def all_processes(self) -> list[int]:
        process = psutil.Process(self.process.pid)
        return [process.pid, *(below.pid for below in process.children(recursive=True))]


def _plain_environment() -> dict[str, str]:
    """Without what tests in this process have set for Ray and for us."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MOCHI_SERVE"))}


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()


def _taken(ports: list[int], patience_s: float = 0) -> dict[int, str]:
    """The ports that are not free, or do not become so within patience_s seconds, each with who listens there."""
    deadline = time.monotonic() + patience_s
    while (taken := {port: holder(port) for port in ports if not is_free(port)}) and time.monotonic() < deadline:
        time.sleep(0.02)
    return taken


@contextmanager
def _launched(
    folder: Path, app: str = "tiny_app:app", data: Path | None = None, terminal: bool = False, **environment: str
) -> Iterator[Launched]:
    server = Launched(folder, app, data, terminal, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            server.end()


def test_it_starts_answers_and_leaves_nothing(tmp_path: Path) -> None:
    # Too long for the path of a socket, and with spaces.
    temporary = tmp_path / "a folder for temporary files with a long name"
    temporary.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    with _launched(tmp_path, terminal=True, TMPDIR=str(temporary), MOCHI_SERVE__LOGGING__FORMAT="json") as server:
        shown = said = server.until("Stop")
        assert "other users of this machine could reach data; now only you can." in said
        url = f"http://127.0.0.1:{server.ports[0]}/"
        assert "is ready" in said and url in said
        assert httpx.get(url, timeout=30).text == "hello"
        assert httpx.get(f"http://127.0.0.1:{server.ports[1]}/api/version").status_code == 401
        token = (server.data / "ray-token").read_text()
        allowed = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"http://127.0.0.1:{server.ports[1]}/api/version", headers=allowed).status_code == 200
        processes = server.all_processes()
        (scratch,) = _scratch_folders(processes)
        assert (scratch / "ray").is_dir() and scratch.stat().st_mode & 0o777 == 0o700
        _assert_second_is_refused(tmp_path / "second", server)
        assert httpx.get(f"{url}broken", timeout=30).text == "hello"
        shown += server.until("ERROR")
        server.press_ctrl_c()
        code, said = server.end()
        assert code == 0, said
        assert gone(processes)
        assert _taken(server.ports) == {}
        assert sorted(p.name for p in server.data.iterdir()) == ["ray-token", "server.log"]
        _assert_terminal_is_quiet(shown + said)
        _assert_log_is_whole(server.data / "server.log")
        assert not scratch.exists() and list(temporary.iterdir()) == []
        assert server.data.stat().st_mode & 0o777 == 0o700


def _assert_terminal_is_quiet(shown: str) -> None:
    """Each line of ours is there, in their order, and no other."""
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines() if line]
    kinds = [next((kind for kind in ON_TERMINAL if re.fullmatch(kind, line)), line) for line in lines]
    assert [kind for kind, _ in groupby(kinds)] == ON_TERMINAL, shown
    assert any(line.startswith("│ Log ") for line in lines), "the panel names the log"


def _assert_log_is_whole(path: Path) -> None:
    """All lines are JSON, of all processes, without a secret."""
    text = path.read_text()
    lines = {line["message"]: line for line in map(json.loads, text.splitlines())}
    assert SECRET not in text and "terminal" not in lines["a line for the file"]
    assert "printed by a library" in lines and any("Deploying new app" in message for message in lines)
    error = lines["cannot use ***"]
    assert (error["stage"], error["job"], error["tenant"]) == ("tiny", "video_1", "acme")
    # What Serve knows.
    assert error["request_id"] and error["route"] == "/" and error["application"] == "tiny" and error["replica"]


def _scratch_folders(processes: list[int]) -> set[Path]:
    """The folders of temporary files that the command lines of the processes name."""
    return {Path(match[0]) for pid in processes for match in re.finditer(r"/tmp/mochi-s-\w{8}", _title(pid))}


def _assert_second_is_refused(folder: Path, first: Launched) -> None:
    folder.mkdir()
    with _launched(folder, data=first.data) as second:
        code, said = second.end()
    assert code == 1
    assert re.search(rf"another server \(process {first.process.pid}\)", said)


@pytest.mark.slow
def test_an_application_that_cannot_be_built_is_told_in_one_line(tmp_path: Path) -> None:
    with _launched(tmp_path, "tiny_app:broken") as server:
        server.until("Deploying new app")
        processes = server.all_processes()
        code, said = server.end()
        assert code == 1
        last = said.strip().splitlines()[-1]
        assert last == "mochi-serve: the application 'tiny' could not be started: ValueError: no model here"
        assert any((server.data / "ray-logs").glob("gcs_server*"))
        assert (server.data / "ray-logs").stat().st_mode & 0o777 == 0o700
        assert gone(processes)


@pytest.mark.slow
def test_an_http_front_that_does_not_start_is_told_in_one_line(tmp_path: Path) -> None:
    with _launched(tmp_path, RAY_SERVE_HAPROXY_BINARY_PATH="/bin/false") as server:
        processes = server.all_processes()
        code, said = server.end()
        assert code == 1
        last = said.strip().splitlines()[-1]
        assert last.startswith("mochi-serve: Ray Serve or its HTTP front did not start ("), said
        assert gone(processes)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ServeReplica", "ServeController"])
def test_a_stop_that_serve_does_not_follow_in_time_ends_well(tmp_path: Path, part: str) -> None:
    with _launched(tmp_path) as server:
        server.until("Stop")
        processes = server.all_processes()
        (busy,) = (pid for pid in processes if _title(pid).startswith(f"ray::{part}"))
        os.kill(busy, signal.SIGSTOP)  # as on a machine that is too busy to run it
        server.process.send_signal(signal.SIGINT)
        code, said = server.end()
        assert (code, said.strip().splitlines()[-1]) == (0, "Stopped.")
        assert "Traceback" not in said
        assert gone(processes)


@pytest.mark.slow
def test_killed_it_takes_everything_with_it(tmp_path: Path) -> None:
    with _launched(tmp_path) as server:
        server.until("Stop")
        # Ray's two agents look for their node for another minute; they keep no data and no port of ours.
        processes = [pid for pid in server.all_processes() if not _title(pid).endswith("Agent")]
        server.process.kill()
        assert gone(processes)
        # An HAProxy that was being put in place of the one in the list dies with its manager, a moment later.
        assert _taken(server.ports, PATIENCE_S) == {}


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with _launched(tmp_path) as server:
        server.until("Deploying new app")
        processes = server.all_processes()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        code, said = server.end()
        # Signals that are there together are handed out in the order of their numbers.
        assert code == 0 or (code in (130, 143) and "ended at once by a second" in said), said
        assert gone(processes)
        assert _taken(server.ports) == {}
        assert not (server.data / "lock").exists()


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        _launched(tmp_path, MOCHI_SERVE_DASHBOARD_PORT=str(taken.getsockname()[1])) as server,
    ):
        code, said = server.end()
        assert code == 1
        assert said.count("\n") == 1
        assert f"port {taken.getsockname()[1]} is taken by process {os.getpid()}" in said
        assert "--dashboard-port" in said


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with _launched(tmp_path, MOCHI_SERVE__MIN_FREE_DISK_MB="900000000") as server:
        code, said = server.end()
        assert (code, said.count("\n")) == (1, 1)
        assert "900000000 MB are needed" in said


def test_a_bad_key_in_the_profile_is_one_line(tmp_path: Path) -> None:
    with _launched(tmp_path, MOCHI_SERVE__JOBS__LEASE="3") as server:
        code, said = server.end()
        assert (code, said.count("\n")) == (2, 1)
        assert "jobs.lease: unknown key; allowed are lease_s" in said


def test_a_bad_key_in_the_serve_config_is_one_line(tmp_path: Path) -> None:
    with _launched(tmp_path, "tiny_app") as server:
        code, said = server.end()
        assert (code, said.count("\n")) == (2, 1)
        assert "applications.0.import_path" in said
