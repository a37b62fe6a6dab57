"""Runs HAProxy as Ray Serve asks for it, with two changes to the configuration that Serve wrote.

    python -I -S haproxy_wrapper.py PORTS HAPROXY PARENT [ARGUMENT ...]

PORTS: those of statistics and metrics, with commas between. HAPROXY: path of the program. PARENT: process id of
Serve's manager of HAProxy; the kernel kills HAProxy with it, which would otherwise outlive the manager and keep the
ports, for example during a reload. The rest goes to HAProxy. Standard library only.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def revise(config: str, ports: Sequence[int]) -> str:
    """The configuration with both changes.

    Statistics and metrics listen on loopback; Serve puts them on all addresses. While HAProxy knows no replica it
    answers 503 with Retry-After; Serve says 404, which a client would take for the loss of its video.

    Args:
        config: what Serve wrote.
        ports: of statistics and metrics.
    """
    either_port = "|".join(str(port) for port in ports)
    config = re.sub(rf"bind \*?:({either_port})$", r"bind 127.0.0.1:\1", config, flags=re.MULTILINE)
    # The first answer of that backend, and only if it is a 404.
    answer = r"(^backend default_backend(?:(?!return status).)*return status )404 "
    return re.sub(answer, r"\g<1>503 hdr Retry-After 2 ", config, flags=re.MULTILINE | re.DOTALL)


def main(ports: Sequence[int], haproxy: str, parent: int, arguments: Sequence[str]) -> None:
    """Revise the file named by `-f`, if any, and become HAProxy. Returns only when the parent has ended."""
    if "-f" in arguments:
        with open(arguments[arguments.index("-f") + 1], "r+") as file:
            config = revise(file.read(), ports)
            file.seek(0)
            file.truncate()
            file.write(config)
    # It stays set across exec, but a parent that has ended before sends nothing.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        os.execv(haproxy, [haproxy, *arguments])


if __name__ == "__main__":
    main([int(port) for port in sys.argv[1].split(",")], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
