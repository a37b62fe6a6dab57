"""LiteLLM's proxy in front of a server, set up and started as docs/clients.md says."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.clients.environments import CLIENTS, LITELLM, PROXY_KEY, process_variables
from tests.support.clients.recipes import Recipe, recipes
from tests.support.servers.ports import free_ports
from tests.support.servers.server import END_S, READY_S
from tests.support.waiting import wait_until

SECTION = "LiteLLM's proxy"


def settings_and_start() -> tuple[Recipe, Recipe]:
    """The proxy's file of settings, and what starts it."""
    of_proxy = [each for each in recipes() if each.section == SECTION]
    (settings,) = [each for each in of_proxy if each.language == "yaml"]
    (start,) = [each for each in of_proxy if each.text.startswith("exec litellm")]
    return settings, start


@contextmanager
def running_proxy(server: str, folder: Path) -> Iterator[str]:
    """Start it in `folder` on a free port; gives its URL and stops it at the end. Skips where it is not installed."""
    LITELLM.need()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings, start = settings_and_start()
    (folder / "litellm.yaml").write_text(settings.at(server, url))
    log = folder / "proxy.log"
    path = f"{CLIENTS / 'litellm' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", start.at(server, url)],
            cwd=folder,
            env=process_variables({"PATH": path, "LITELLM_MASTER_KEY": PROXY_KEY}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-5000:]
        try:
            return httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, lambda: log.read_text(errors="replace")[-5000:], READY_S)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
