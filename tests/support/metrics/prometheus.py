"""Debian's Prometheus, which scrapes one server and answers queries."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.servers.ports import free_ports

READY_S = 60


@dataclass
class Prometheus:
    """A running one."""

    url: str
    log: Path

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now, each with `metric` and `value`."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def target(self) -> dict[str, Any]:
        """What it says of the server that it scrapes."""
        (target,) = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
        return dict(target)


@contextmanager
def running_prometheus(folder: Path, url: str, key: str | None = None, every_s: int = 1) -> Iterator[Prometheus]:
    """One that scrapes `url`/metrics with an API key; skips the test where Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    scrape: dict[str, Any] = {
        "job_name": "mochi-serve",
        "scrape_interval": f"{every_s}s",
        "scrape_timeout": f"{every_s}s",
        "static_configs": [{"targets": [url.removeprefix("http://")]}],
    }
    if key is not None:
        scrape["authorization"] = {"credentials": key}
    config, log, (port,) = folder / "prometheus.yml", folder / "prometheus.log", free_ports(1)
    config.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        running = Prometheus(f"http://127.0.0.1:{port}", log)
        _wait_ready(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _wait_ready(running: Prometheus, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, running.log.read_text()
        try:
            if httpx.get(f"{running.url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(running.log.read_text())
