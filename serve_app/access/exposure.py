"""Where the app may listen: beyond this machine only with keys, or if the settings allow it in so many words."""

import ipaddress
import socket
from functools import lru_cache
from urllib.parse import urlsplit

from serve_app.access.tenants import AccessTable
from serve_app.config import AccessMode
from serve_app.errors import ConfigError

NO_KEYS = (
    "access.mode is keys and there is no key yet: every request is refused with 401. "
    "Make one with `mochi-serve keys create --tenant NAME`; it works at once, without a restart."
)


def keys_needed(mode: AccessMode) -> bool:
    return mode == "keys"


def check_exposure(host: str | None, mode: AccessMode) -> None:
    """Check the address that HTTP is served on.

    Args:
        host: a name or an address; None where nothing is served.

    Raises:
        ConfigError: other machines can reach the address, and `mode` does not say who may.
    """
    if mode != "auto" or host is None or is_loopback(host):
        return
    raise ConfigError(
        f"http_options.host is {host!r}, which other machines can reach, and access.mode is auto, which asks for no "
        "keys. Set access.mode: keys (MOCHI_SERVE__ACCESS__MODE=keys) and make a key with "
        "`mochi-serve keys create --tenant NAME`; or keep to this machine with http_options.host: 127.0.0.1; or, if "
        "whoever reaches the port may use it and see everything, set access.mode: open-to-anyone"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. A name is resolved: all its addresses must be loopback ones."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass  # a name
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(addresses) and all(ipaddress.ip_address(str(address[0])).is_loopback for *_, address in addresses)


@lru_cache(maxsize=64)
def is_loopback_header(host: str) -> bool:
    """Whether the value of a header Host, with or without a port, is a name or an address of this machine.

    No name is looked up: a page may have made its own stand for 127.0.0.1.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if host.strip() != host or any(c in host for c in "/?#@\\"):
            return False
    except ValueError:
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def current_http_host() -> str | None:
    """The address that the running Ray Serve listens on; None where there is no Serve, or one without HTTP.

    It is set when Serve is started, and no application changes it. Blocks while it calls Serve's controller.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    host: str | None = client.http_config.host
    return host


def no_keys_notice(mode: AccessMode, table: AccessTable) -> str | None:
    """What the log is to say of a server that needs keys and has none."""
    return NO_KEYS if keys_needed(mode) and not table.keys else None
