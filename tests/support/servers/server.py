"""A real server, started as a user would, on free ports and a data folder of its own."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support import ROOT
from tests.support.servers.ports import free_block, free_ports

# Generous, so that only what will never come is not waited for: a busy machine takes ten times as long as an idle one.
READY_S = 600
END_S = 120
STATE_S = 600.0
# Steps of a video that a test sees being made and then cancels, however slow the test is.
ENDLESS = 5000
TRY_AGAIN = "if this machine is busy, try again"
FINAL = ("completed", "failed", "cancelled")
PROCESS_TITLES = {
    "registry": "ray::JobRegistry",
    "storage": "ray::LocalStorage",
    "encoder": "ray::ServeReplica:mochi:PromptEncoder",
    "sampler": "ray::ServeReplica:mochi:MochiSampler",
    "decoder": "ray::ServeReplica:mochi:VideoDecoder",
    "ingress": "ray::ServeReplica:api:Ingress",
    "controller": "ray::ServeController",
    # Not Ray's: their programs, wherever they are installed.
    "proxy": "*/haproxy ",
    "store": "*/weed ",
}


@dataclass
class Server:
    """A running `mochi-serve serve`."""

    process: subprocess.Popen[bytes]
    url: str
    data: Path
    log: Path
    ports: list[int]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=END_S)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def pids(self, part: str) -> list[int]:
        """Processes of one part, by the title that Ray gives them or the program that they run."""
        title = PROCESS_TITLES[part]
        return [p.pid for p in self.descendants() if fnmatchcase(title_of(p), f"{title}*")]

    def kill(self, part: str) -> None:
        """kill -9 to every process of the part."""
        pids = self.pids(part)
        assert pids, f"no process of the {part} runs"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """kill -9 to the server and everything below it; returns when all have ended.

        They are stopped first: nothing can be started again between two of the blows.
        """
        stopped: dict[int, psutil.Process] = {}
        while fresh := [p for p in self._tree() if p.pid not in stopped]:
            for process in fresh:
                stopped[process.pid] = process
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
        for process in stopped.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(END_S)
        psutil.wait_procs(stopped.values(), END_S)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(self.process.pid), *self.descendants()]
        except psutil.NoSuchProcess:
            return []

    def redeploy(self, profile: Path) -> None:
        """Deploy the same applications with another profile, as `serve deploy` does."""
        tree = yaml.safe_load((self.data.parent / "serve_config.yaml").read_text())
        for application in tree["applications"]:
            application["args"]["config"] = str(profile)
        token = (self.data / "ray-token").read_text().strip()
        dashboard = f"http://127.0.0.1:{self.ports[1]}/api/serve/applications/"
        answer = httpx.put(dashboard, json=tree, headers={"Authorization": f"Bearer {token}"}, timeout=END_S)
        assert answer.status_code == 200, answer.text

    def job_row(self, video_id: str, *columns: str) -> tuple[Any, ...]:
        """Columns of a job, from the database itself."""
        with closing(sqlite3.connect(f"file:{self.data / 'jobs.db'}?mode=ro", uri=True)) as connection:
            query = f"SELECT {', '.join(columns)} FROM jobs WHERE id = ?"
            row: tuple[Any, ...] = connection.execute(query, (video_id,)).fetchone()
            return row

    def write_sql(self, statement: str, values: tuple[Any, ...]) -> None:
        """Change the database of the running server behind its back."""
        with closing(sqlite3.connect(self.data / "jobs.db", timeout=60)) as database, database:
            database.execute(statement, values)

    def create(self, **fields: Any) -> dict[str, Any]:
        with self.client() as client:
            response = client.post("/v1/videos", json=fields)
        assert response.status_code == 200, response.text
        video: dict[str, Any] = response.json()
        return video

    def get(self, video_id: str) -> dict[str, Any]:
        with self.client() as client:
            response = client.get(f"/v1/videos/{video_id}")
        assert response.status_code == 200, response.text
        video: dict[str, Any] = response.json()
        return video

    def wait_for(self, video_id: str, *states: str, timeout_s: float = STATE_S) -> dict[str, Any]:
        """Poll until the job's state is one of `states`; answers such as 503 while a part restarts are waited out."""
        deadline = time.monotonic() + timeout_s
        seen: object = None
        with self.client() as client:
            while time.monotonic() < deadline:
                try:
                    response = client.get(f"/v1/videos/{video_id}")
                    seen = response.text
                    if response.status_code == 200:
                        video: dict[str, Any] = response.json()
                        if video["state"] in states:
                            return video
                        assert video["state"] not in FINAL, f"{video_id} ended before it was seen in {states}: {seen}"
                except httpx.TransportError as error:
                    seen = error
                time.sleep(0.02)
        raise AssertionError(f"{video_id} did not reach {states} in {timeout_s} s: {seen}\n{self.log_tail()}")

    def download(self, video_id: str, path: Path) -> Path:
        with self.client() as client:
            response = client.get(f"/v1/videos/{video_id}/content")
        assert response.status_code == 200, response.text
        path.write_bytes(response.content)
        return path

    def moves(self, video_id: str) -> list[str]:
        """The states the job went through, from the database itself."""
        with closing(sqlite3.connect(f"file:{self.data / 'jobs.db'}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT state FROM job_moves WHERE job_id = ? ORDER BY id", (video_id,))
            return [state for (state,) in rows]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, then wait for the end; returns the exit code."""
        self.process.send_signal(how)
        return self.process.wait(END_S)

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def running_server(folder: Path, environ: dict[str, str] | None = None, until: str = "/ready") -> Iterator[Server]:
    """Start a server whose files are all in `folder`, wait for a 200 of the path `until`, and stop it at the end."""
    server = start_server(folder, environ)
    try:
        try:
            wait_ready(server, until)
        except AssertionError:
            # Ray and the HTTP front each have a bound to start in; on a busy machine one tries again, as users do.
            if TRY_AGAIN not in server.log_tail():
                raise
            server = start_server(folder, environ)
            wait_ready(server, until)
        yield server
    finally:
        if server.process.poll() is None:
            stop_whole(server)


def stop_whole(server: Server) -> None:
    """Stop the server as Ctrl-C does. Raises AssertionError unless it ends well and leaves no process."""
    descendants = server.descendants()
    code: int | None = None
    try:
        code = server.stop()
    except subprocess.TimeoutExpired:
        server.process.kill()
    finally:
        left = [p for p in descendants if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            process.kill()
    assert (code, left) == (0, []), server.log_tail()
    database = server.data / "jobs.db"
    assert not database.exists() or not database.with_name("jobs.db-wal").exists(), "the database is not whole"


def start_server(folder: Path, environ: dict[str, str] | None = None) -> Server:
    """Start a server in `folder`; a second start there goes on with the same data and ports."""
    folder.mkdir(parents=True, exist_ok=True)
    config, ports = _config(folder)
    environment = os.environ | _port_variables(ports) | {"PYTHONUNBUFFERED": "1"} | (environ or {})
    log = folder / "server.log"
    command = [
        sys.executable,
        "-m",
        "serve_app.cli.main",
        "serve",
        "--config",
        str(config),
        "--data",
        str(folder / "data"),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
    return Server(process, f"http://127.0.0.1:{ports[0]}", folder / "data", log, ports)


def wait_ready(server: Server, path: str = "/ready") -> None:
    deadline = time.monotonic() + READY_S
    with server.client() as client:
        while time.monotonic() < deadline:
            assert server.process.poll() is None, server.log_tail()
            try:
                if client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise AssertionError(f"not ready after {READY_S} s\n{server.log_tail()}")


def _config(folder: Path) -> tuple[Path, list[int]]:
    path = folder / "serve_config.yaml"
    saved = folder / "ports"
    if not path.exists():
        ports = [*free_ports(4), free_block()]
        tree = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        tree["http_options"]["port"] = ports[0]
        path.write_text(yaml.safe_dump(tree))
        saved.write_text(" ".join(map(str, ports)))
    return path, [int(port) for port in saved.read_text().split()]


def _port_variables(ports: list[int]) -> dict[str, str]:
    _, dashboard, metrics, stats, storage = map(str, ports)
    return {
        "MOCHI_SERVE_DASHBOARD_PORT": dashboard,
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        "MOCHI_SERVE__STORAGE__LOCAL_PORT": storage,
    }


def title_of(process: psutil.Process) -> str:
    """Its command line; empty if it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
