"""Where webhooks may be sent: to public addresses, as long as the settings do not allow more.

A URL is checked when it is given, and its name is resolved then, so that the client is told at
once. What counts is the check of the address itself, in `serve_app.webhooks.client` when a
connection is made: by then the name may resolve to another address.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Network, ip_address

from yarl import URL

from serve_app.access.special_addresses import IPAddress, is_global
from serve_app.errors import InvalidRequestError, quote

PARAM = "webhook_url"
MAX_LENGTH = 2000
SCHEMES = ("http", "https")
RESOLVE_S = 5.0  # for the check of a URL that is given

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
Resolve = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]

# Top-level domains and names that stand for no public host (RFC 6761, 6762, 8375, ICANN's
# .internal) and thereby all the names of the clouds' metadata services, metadata.google.internal
# and instance-data.ec2.internal among them.
PRIVATE_DOMAINS = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa", "metadata.goog")

_UNICAST_6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str | IPAddress) -> bool:
    """Whether the address is one of the internet's own, reached by unicast.

    An IPv6 address that stands for an IPv4 one (mapped, NAT64 by RFC 6052, 6to4) is as public as
    that one.

    Raises:
        ValueError: it is no address.
    """
    address = ip_address(address) if isinstance(address, str) else address
    if isinstance(address, IPv4Address):
        return is_global(address)
    behind_nat64 = IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
    embedded = address.ipv4_mapped or behind_nat64
    if embedded is not None:
        return is_public(embedded)
    if address.scope_id is not None:
        return False
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in _UNICAST_6 and is_global(address)


async def check_target(
    url: str, allow_private: bool, resolve: Resolve | None = None, timeout_s: float = RESOLVE_S
) -> None:
    """Refuse a URL that no webhook is sent to.

    A name that cannot be resolved now is accepted: it is resolved again for each delivery.

    Args:
        url: as the client gave it.
        allow_private: accept hosts that are not public, too; then no name is resolved.
        resolve: the addresses of a host and port; raises OSError. By default the system's resolver.
        timeout_s: how long to wait for `resolve`.

    Raises:
        InvalidRequestError: says what is wrong, and never shows the URL's user, password or path.
    """
    parsed = _parse(url, allow_private)
    if allow_private:
        return
    host = _host(parsed)
    found: Sequence[AddressInfo] = ()
    with suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(timeout_s):
            found = await (resolve or system_resolve)(host, parsed.port or 0)
    if not all(is_public(str(info[4][0])) for info in found):
        raise _private(host)


async def system_resolve(host: str, port: int) -> Sequence[AddressInfo]:
    """The addresses of `host` for TCP, as the system's resolver knows them.

    Raises:
        OSError: there are none, or the resolver does not answer.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(
            _resolver_threads(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    except UnicodeError:  # a label that is empty or longer than DNS has them
        raise OSError(f"{quote(host)} is no name that can be resolved") from None


@cache
def _resolver_threads() -> ThreadPoolExecutor:
    """A few threads for names alone: one that takes long to resolve does not hold up other work in threads."""
    return ThreadPoolExecutor(4, thread_name_prefix="webhook-names")


def _parse(url: str, allow_private: bool) -> URL:
    parsed = _parts(url)
    if parsed.scheme not in SCHEMES:
        raise _refused("it must begin with https:// or http://")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise _refused("it must not hold a user or a password; webhooks are signed, check their signature instead")
    if "#" in url:
        raise _refused("it must have no fragment (#...)")
    if parsed.port == 0:
        raise _refused("its port must be from 1 to 65535")
    _check_host(_host(parsed), allow_private)
    return parsed


def _parts(url: str) -> URL:
    if len(url) > MAX_LENGTH:
        raise _refused(f"it has {len(url)} characters, at most {MAX_LENGTH} are allowed")
    if "\\" in url or any(not c.isprintable() or c.isspace() for c in url):
        raise _refused("it must hold no white space, control characters or backslashes; write them percent-encoded")
    try:
        return URL(url)
    except ValueError as error:
        raise _refused("it cannot be read as a URL; an example is https://example.com/videos-done") from error


def _host(parsed: URL) -> str:
    """As it is looked up: in ASCII letters, without the dot of a full name. Empty if there is none."""
    return (parsed.raw_host or "").lower().removesuffix(".")


def _check_host(host: str, allow_private: bool) -> None:
    address = _literal(host)
    if not host or "%" in host or any(not label or len(label) > 63 for label in host.split(".")):
        raise _refused("it must name a host, by name or by address")
    if address is None and _is_odd_address(host):
        raise _refused("its host is an address in an unusual form; write it as 203.0.113.7 or [2001:db8::7]")
    private = _is_private_name(host) if address is None else not is_public(address)
    if private and not allow_private:
        raise _private(host)


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_odd_address(host: str) -> bool:
    """2130706433, 0x7f.1, 0177.0.0.1 and their like, which a system's resolver takes for addresses."""
    try:
        socket.inet_aton(host)
    except OSError:
        return ":" in host or host.rsplit(".", 1)[-1].isdecimal()
    return True


def _is_private_name(host: str) -> bool:
    return "." not in host or any(host == domain or host.endswith(f".{domain}") for domain in PRIVATE_DOMAINS)


def _private(host: str) -> InvalidRequestError:
    return _refused(f"{quote(host)} is not a public host; name one that can be reached from the internet")


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{PARAM} is refused: {why}.", PARAM)
