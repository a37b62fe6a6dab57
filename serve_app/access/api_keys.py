"""API keys: how they are made, kept and recognised. No I/O.

A key is `ms-` and 43 URL-safe characters, 32 random bytes. It is told once, when it is made, and kept as its hash.
"""

import hashlib
import re
import secrets

from serve_app.access.tenants import AccessTable, ApiKey, Tenant
from serve_app.errors import UnauthenticatedError

PREFIX = "ms-"
KEY_BYTES = 32
HINT_CHARACTERS = 8

_KEY = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_ASK = "Ask the operator of this server for a new one."


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_hash(key: str) -> str:
    """64 hexadecimal digits."""
    # One fast hash is enough: nobody can try 2**256 random keys, and a slow one would be paid for at every request.
    return hashlib.sha256(key.encode()).hexdigest()


def key_hint(key: str) -> str:
    """The first characters: enough to tell a tenant's keys apart, far too few to guess the rest."""
    return key[:HINT_CHARACTERS]


def find_key(table: AccessTable, key: str, now: float) -> Tenant:
    """The tenant that the key belongs to. now: Unix seconds.

    Raises:
        UnauthenticatedError: it is no key of this server, or one that has expired or was revoked.
    """
    if not _KEY.fullmatch(key):
        raise UnauthenticatedError(
            f"What was given is no API key of this server: one begins with '{PREFIX}' and has {len(PREFIX) + 43} "
            "characters. Check that it was copied whole."
        )
    known = table.keys.get(key_hash(key))
    if known is None:
        raise UnauthenticatedError(f"The API key is not known to this server. Check that it was copied whole. {_ASK}")
    check_valid(known, now)
    tenant = table.tenants.get(known.tenant)
    if tenant is None:
        raise UnauthenticatedError(f"The API key belongs to a tenant that was removed. {_ASK}")
    return tenant


def check_valid(key: ApiKey, now: float) -> None:
    """Raises UnauthenticatedError if the key was revoked or has expired by `now` (Unix seconds)."""
    if key.revoked_at is not None:
        raise UnauthenticatedError(f"The API key was revoked. {_ASK}", "revoked_api_key")
    if key.expires_at is not None and key.expires_at <= now:
        raise UnauthenticatedError(f"The API key has expired. {_ASK}", "expired_api_key")
