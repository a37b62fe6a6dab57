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
from tests.support.servers.server import Server

READY_S = 60
JOB = "mochi-serve"


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

    def firing(self) -> list[str]:
        """The names of the alerts that fire now."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30)
        assert answer.status_code == 200, answer.text
        alerts = answer.json()["data"]["alerts"]
        return [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"]

    def rule_health(self) -> dict[str, str]:
        """Of each rule by its name: `ok`, `err`, or `unknown` before its first evaluation."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def target(self) -> dict[str, Any]:
        """What it says of the server that it scrapes."""
        targets = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
        target: dict[str, Any] = next((each for each in targets if each["labels"]["job"] == JOB), {})
        return dict(target)


@contextmanager
def running_prometheus(
    folder: Path,
    url: str,
    key: str | None = None,
    every_s: int = 5,
    rules: Path | None = None,
    ray_targets: Path | None = None,
) -> Iterator[Prometheus]:
    """One that scrapes a server; skips the test where Prometheus is not installed.

    Args:
        folder: for its files.
        url: of the server, whose /metrics is read.
        key: an API key to read it with.
        every_s: between two scrapes, and two evaluations of the rules. A page that comes later than that counts as no
            page, and all its series as gone: a second is too little on a busy machine.
        rules: a file of alerts.
        ray_targets: the file in which Ray names the pages of its nodes, which are read too.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    scrape: dict[str, Any] = {
        "job_name": JOB,
        "scrape_interval": f"{every_s}s",
        "scrape_timeout": f"{every_s}s",
        "static_configs": [{"targets": [url.removeprefix("http://")]}],
    }
    if key is not None:
        scrape["authorization"] = {"credentials": key}
    config, log, (port,) = folder / "prometheus.yml", folder / "prometheus.log", free_ports(1)
    scrapes = [scrape]
    if ray_targets is not None:
        scrapes.append({"job_name": "ray", "scrape_interval": "5s", "file_sd_configs": [{"files": [str(ray_targets)]}]})
    tree: dict[str, Any] = {"global": {"evaluation_interval": f"{every_s}s"}, "scrape_configs": scrapes}
    if rules is not None:
        tree["rule_files"] = [str(rules)]
    config.write_text(yaml.safe_dump(tree))
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


def ray_targets(server: Server) -> Path:
    """The file in which Ray names the pages of its nodes for Prometheus."""
    (log_dir,) = {
        part.removeprefix("--log_dir=")
        for process in server.descendants()
        if process.name() == "gcs_server"
        for part in process.cmdline()
        if part.startswith("--log_dir=")
    }
    return Path(log_dir).parent.parent / "prom_metrics_service_discovery.json"
