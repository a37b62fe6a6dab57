"""Who may ask for what: tenants, their API keys, and the callers who show them. No I/O.

Videos belong to tenants, and the devices are shared out among them. An API key is `ms-` and 43 URL-safe characters, 32
random bytes. It is shown once, when it is made, and kept as its hash.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.config import DAY_S
from serve_app.errors import PermissionDeniedError, UnauthenticatedError
from serve_app.jobs import DEFAULT_TENANT, TIERS, Job, Tier

TENANT_PATTERN = "[A-Za-z0-9._-]{1,64}"
TENANT_ALLOWED = "1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"

KEY_PREFIX = "ms-"
KEY_BYTES = 32
HINT_CHARACTERS = 8
_KEY = re.compile(rf"{KEY_PREFIX}[A-Za-z0-9_-]{{43}}")
_ASK_OPERATOR = "Ask the operator of this server for a new one."


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and its limits; a limit that is None is left to the settings of the server."""

    name: str
    max_tier: Tier  # the highest priority that its requests may ask for
    webhook_secret: str = field(repr=False)  # which its webhooks are signed with, as it is kept: see `secret_box`
    created_at: float  # Unix seconds
    weight: float | None = None  # its share in GPU-seconds among the tenants
    requests_per_minute: int | None = None  # of all kinds, in each ingress replica
    videos_per_minute: int | None = None  # requests for new videos, in all
    max_queued: int | None = None  # videos that may wait at once
    gpu_seconds_per_day: float | None = None  # a day in UTC


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is kept."""

    id: str
    tenant: str  # name of the tenant that it belongs to
    hash: str = field(repr=False)  # SHA-256, 64 hexadecimal digits
    hint: str  # the first characters of the key
    label: str
    created_at: float  # Unix seconds, as the following ones
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class AccessTable:
    """All tenants and keys."""

    version: int  # grows with every change
    tenants: Mapping[str, Tenant]  # by name
    keys: Mapping[str, ApiKey]  # by hash


NO_TENANTS = AccessTable(-1, {}, {})


@dataclass(frozen=True, slots=True)
class ShownKey:
    """The API key of a request."""

    tenant: Tenant  # that it belongs to
    hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request."""

    tenant: str = DEFAULT_TENANT
    idempotency_key: str | None = None  # the same key and body make the same video
    key_tenant: Tenant | None = None
    """The tenant that the request's API key belongs to. None while the server needs no keys: then `tenant` is whatever
    the request says, and everybody sees everything."""
    key_hash: str | None = field(default=None, repr=False)
    """Of that key, so that an answer that goes on for long can ask whether the key is still good."""

    def may_see(self, job: Job) -> bool:
        return self.key_tenant is None or job.tenant == self.tenant


def tier_of(caller: Caller, requested: Tier | None) -> Tier:
    """The tier of the caller's new video: the requested one, else standard, or the tenant's highest if that is lower.

    Raises:
        PermissionDeniedError: the tenant may not ask for it.
    """
    highest = TIERS[0] if caller.key_tenant is None else caller.key_tenant.max_tier
    if requested is None:
        return max(Tier.STANDARD, highest, key=TIERS.index)
    if TIERS.index(requested) < TIERS.index(highest):
        allowed = ", ".join(TIERS[TIERS.index(highest) :])
        message = f"The priority '{requested}' is above what this tenant may use; allowed is: {allowed}."
        raise PermissionDeniedError(message, "priority", "priority_not_allowed")
    return requested


def day_of(at: float) -> int:
    """The day of a time in Unix seconds, in days since 1970-01-01, UTC."""
    return int(at // DAY_S)


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_hash(key: str) -> str:
    """64 hexadecimal digits."""
    # One fast hash is enough: nobody can try 2**256 random keys, and a slow one would be paid for at every request.
    return hashlib.sha256(key.encode()).hexdigest()


def key_hint(key: str) -> str:
    """The first characters: enough to tell a tenant's keys apart, far too few to guess the rest."""
    return key[:HINT_CHARACTERS]


def shown_key_hash(key: str) -> str:
    """The hash of an API key, as the request gives it.

    Raises:
        UnauthenticatedError: no key looks like this.
    """
    if not _KEY.fullmatch(key):
        raise UnauthenticatedError(
            f"What was given is no API key of this server: one begins with '{KEY_PREFIX}' and has "
            f"{len(KEY_PREFIX) + 43} characters. Check that it was copied whole."
        )
    return key_hash(key)


def tenant_of_key(table: AccessTable, hashed: str, now: float) -> Tenant:
    """The tenant that an API key belongs to.

    Args:
        hashed: the key's hash.
        now: Unix seconds.

    Raises:
        UnauthenticatedError: it is no key of this server, or one that has expired or was revoked.
    """
    entry = table.keys.get(hashed)
    if entry is None:
        raise UnauthenticatedError(
            f"The API key is not known to this server. Check that it was copied whole. {_ASK_OPERATOR}"
        )
    if entry.revoked_at is not None:
        raise UnauthenticatedError(f"The API key was revoked. {_ASK_OPERATOR}", "revoked_api_key")
    if entry.expires_at is not None and entry.expires_at <= now:
        raise UnauthenticatedError(f"The API key has expired. {_ASK_OPERATOR}", "expired_api_key")
    tenant = table.tenants.get(entry.tenant)
    if tenant is None:
        raise UnauthenticatedError(f"The API key belongs to a tenant that was removed. {_ASK_OPERATOR}")
    return tenant
