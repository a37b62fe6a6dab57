"""Runs HAProxy as Ray Serve asks for it, with some changes to the configuration that Serve wrote.

    python -I -S haproxy_wrapper.py FRONT HAPROXY PARENT [ARGUMENT ...]

FRONT: a Front as JSON. HAPROXY: path of the program. PARENT: process id of
Serve's manager of HAProxy; the kernel kills HAProxy with it, which would otherwise outlive the manager and keep the
ports, for example during a reload. The rest goes to HAProxy. Standard library only.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Front:
    """What the configuration is to have that Serve does not write."""

    ports: Sequence[int]  # of statistics and metrics
    head_timeout_s: float  # by then a request's head must have arrived, counted from the connection
    connections_per_address: int  # at once, of a client's address; of IPv6, of its network of 64 bits
    body_timeout_s: float = 30  # by then a request's body must have arrived, counted from its head
    trusted: Sequence[str] = ()  # networks whose connections are not counted: of proxies, behind which many clients are

    def as_argument(self) -> str:
        return json.dumps(asdict(self))


# What HAProxy answers itself, by status: code and message of OpenAI's error object. An apostrophe would end the text in
# the configuration.
ERRORS = {
    400: ("bad_request", "The server cannot read this request; its HTTP is wrong, or its head is too long."),
    408: ("request_timeout", "The request did not arrive in time; send it again."),
    500: ("internal_error", "The server failed at this request."),
    502: ("bad_gateway", "The server broke off its answer; send the request again, with its Idempotency-Key."),
    503: ("no_replica", "No replica of the server is there now; it comes back by itself. Send the request again."),
    504: ("gateway_timeout", "The server gave no answer in time; send the request again, with its Idempotency-Key."),
}
RETRY_AFTER_S = 2


# A replica that has not answered with a byte may have done what was asked: these may be asked again, at another one.
# A video is made once for each Idempotency-Key, and what was deleted is deleted.
KEYED = "{ req.hdr(Idempotency-Key) -m found }"
REPEATABLE = f"METH_GET || {{ method DELETE }} || {KEYED}"

# The machine itself is not counted: there are its proxies, and who is here has other ways.
UNCOUNTED = ("127.0.0.1", "::1")


def revise(config: str, front: Front) -> str:
    """The configuration with these changes.

    - Statistics and metrics listen on loopback; Serve puts them on all addresses.
    - A connection that brings no whole request in time is closed, and an address has only so many at once; Serve would
      keep those that say nothing for an hour, until there is no room for others.
    - A request whose replica dies before it answers goes to another one, if it may be repeated; Serve would break the
      client's connection, or answer 502.
    - While HAProxy knows no replica it answers 503. Serve says 404, which a client would take for a video that is lost.
    - Errors are OpenAI's envelope: those that HAProxy makes, for which Serve has a plain 500, and those in plain text
      that Serve makes before a request has come to the app. What HAProxy cannot even parse, and a head that never ends,
      gets HAProxy's own page all the same: that cannot be set.

    Args:
        config: what Serve wrote; one that was revised already stays as it is.
        front: what is wanted.
    """
    either_port = "|".join(str(port) for port in front.ports)
    config = re.sub(rf"bind \*?:({either_port})$", r"bind 127.0.0.1:\1", config, flags=re.MULTILINE)
    errors = "".join(f"    {_http_error(status)}\n" for status in ERRORS)
    config = re.sub(r"(?:^ *errorfile .*\n)+", lambda _: errors, config, count=1, flags=re.MULTILINE)
    plain = "".join(
        f"    http-response return status {status} default-errorfiles if {{ status {status} }} "
        "{ res.hdr(content-type) -m beg text/plain }\n"
        for status in ERRORS
    )
    # In the one frontend that clients speak to, unless they are there.
    frontend = r"(^frontend http_frontend\n)(?! *stick-table)"
    added = _doors(front) + _repeats(front) + plain
    config = re.sub(frontend, lambda found: found[1] + added, config, flags=re.MULTILINE)
    config = re.sub(r"^( *retry-on conn-failure)$", r"\1 empty-response", config, flags=re.MULTILINE)
    timeout = f"    timeout http-request {round(front.head_timeout_s * 1000)}ms\n"
    defaults = rf"(^defaults\n(?: .*\n)*?    mode http\n)(?!{timeout})"
    config = re.sub(defaults, lambda found: found[1] + timeout, config, count=1, flags=re.MULTILINE)
    # The first answer of that backend, and only if it is a 404.
    answer = r"(^backend default_backend(?:(?!return status).)*return status )404 [^\n]*"
    return re.sub(answer, r"\g<1>503 default-errorfiles", config, flags=re.MULTILINE | re.DOTALL)


def _doors(front: Front) -> str:
    """The bound of an address. What is beyond it gets no answer, which would cost what the bound is to save."""
    uncounted = " ".join([*UNCOUNTED, *front.trusted])
    return (
        "    stick-table type ipv6 size 100k expire 1m store conn_cur\n"
        f"    tcp-request connection track-sc0 src,ipmask(32,64) unless {{ src {uncounted} }}\n"
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {front.connections_per_address} }}\n"
    )


def _repeats(front: Front) -> str:
    """What may be sent again. HAProxy keeps for that only what has come whole before it is sent for the first time."""
    return (
        f"    http-request wait-for-body time {round(front.body_timeout_s * 1000)}ms if {KEYED}\n"
        f"    http-request disable-l7-retry unless {REPEATABLE}\n"
    )


def envelope(status: int) -> str:
    """OpenAI's error object for a status of ERRORS, as JSON."""
    code, message = ERRORS[status]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _http_error(status: int) -> str:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    written = " ".join(f"hdr {name} {value}" for name, value in headers.items())
    return f"http-error status {status} content-type application/json string '{envelope(status)}' {written}"


def main(front: Front, haproxy: str, parent: int, arguments: Sequence[str]) -> None:
    """Revise the file named by `-f`, if any, and become HAProxy. Returns only when the parent has ended."""
    if "-f" in arguments:
        with open(arguments[arguments.index("-f") + 1], "r+") as file:
            config = revise(file.read(), front)
            file.seek(0)
            file.truncate()
            file.write(config)
    # It stays set across exec, but a parent that has ended before sends nothing.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        os.execv(haproxy, [haproxy, *arguments])


if __name__ == "__main__":
    main(Front(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
