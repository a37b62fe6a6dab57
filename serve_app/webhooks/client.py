"""The HTTP client of webhooks. It connects to public addresses alone."""

import asyncio
import errno
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from serve_app.access.targets import AddressInfo, Resolve, is_public, system_resolve

LONGEST_ERROR = 500
READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one try."""

    status: int | None  # None if there was no answer
    error: str | None  # what was wrong; None after success
    retry_after: str | None = None  # the header of that name, as it came


class WebhookClient:
    """Sends webhooks; an async context.

    The addresses are checked when the connection is made, whatever a name resolved to before. Each
    try has its own connection. Proxies of the environment are not used, cookies are not kept,
    redirects are not followed. TLS is verified.

    Args:
        timeout_s: for a whole try, from the lookup of the name to the answer's head.
        allow_private: connect to addresses that are not public, too.
        resolve: the addresses of a host and port.
    """

    def __init__(self, timeout_s: float, allow_private: bool, resolve: Resolve = system_resolve) -> None:
        self._timeout_s = timeout_s
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(resolve),
            use_dns_cache=False,
            force_close=True,
            limit=0,
            socket_factory=None if allow_private else public_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One try. An error on the way is in the answer, not raised."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                # The status is the whole answer; the body is neither waited for nor read.
                response.close()
                return Answer(response.status, _error_of(response.status), response.headers.get("Retry-After"))
        except TimeoutError:
            return Answer(None, f"there was no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(None, (str(error) or type(error).__name__)[:LONGEST_ERROR])


def public_socket(info: AddressInfo) -> socket.socket:
    """A socket for connecting to that address.

    Raises:
        PermissionError: the address is not public.
    """
    family, kind, protocol, _, address = info
    host = str(address[0])
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(host):
        raise PermissionError(errno.EACCES, f"{host} is not a public address")
    return socket.socket(family, kind, protocol)


def _error_of(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    phrase = ""
    with suppress(ValueError):
        phrase = f" {HTTPStatus(status).phrase}"
    hint = "; redirects are not followed" if 300 <= status < 400 else ""
    return f"the answer was {status}{phrase}{hint}"


class _Resolver(AbstractResolver):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[ResolveResult]:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(info[4][0]), port=port, family=info[0], proto=info[2], flags=flags)
            for info in await self._resolve(host, port)
            if family in (socket.AF_UNSPEC, info[0])
        ]

    async def close(self) -> None:
        """It holds nothing."""
