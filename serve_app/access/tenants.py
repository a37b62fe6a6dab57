"""Who may ask for what: tenants and their API keys, as plain data. No I/O.

A tenant is whose videos they are and among whom the devices are shared out. Its keys are known only by their hashes.

API keys: how they are made, kept and recognised. No I/O.

A key is `ms-` and 43 URL-safe characters, 32 random bytes. It is told once, when it is made, and kept as its hash.
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


def day_of(at: float) -> int:
    """The day of a time in Unix seconds, in days since 1970-01-01, UTC."""
    return int(at // DAY_S)


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a tenant may use; None where the server's own bounds alone count.

    max_tier: the highest priority that its requests may ask for. weight: its share in GPU-seconds among tenants.
    requests_per_minute: of all kinds, in each ingress replica. videos_per_minute: requests for new videos, in all.
    max_queued: videos that may wait at once. gpu_seconds_per_day: of a day in UTC.
    webhook_secret: `whsec_...`, which its webhooks are signed with.
    """

    name: str
    max_tier: Tier
    webhook_secret: str = field(repr=False)
    created_at: float
    weight: float | None = None
    requests_per_minute: int | None = None
    videos_per_minute: int | None = None
    max_queued: int | None = None
    gpu_seconds_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept. hash: SHA-256 in hexadecimal digits. hint: its first characters. Times are Unix seconds."""

    id: str
    tenant: str
    hash: str = field(repr=False)
    hint: str
    label: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class AccessTable:
    """All tenants by name and all keys by hash. version: grows with every change."""

    version: int
    tenants: Mapping[str, Tenant]
    keys: Mapping[str, ApiKey]


NO_TENANTS = AccessTable(-1, {}, {})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    account: the tenant that the request's key belongs to; None while the server needs no keys, and then `tenant` is
    taken at its word and everybody sees everything.
    idempotency_key: the same key and body make the same video.
    """

    tenant: str = DEFAULT_TENANT
    idempotency_key: str | None = None
    account: Tenant | None = None

    def may_see(self, job: Job) -> bool:
        return self.account is None or job.tenant == self.tenant


def tier_of(caller: Caller, requested: Tier | None) -> Tier:
    """The tier of the caller's new video: the requested one, else standard, or the tenant's highest if that is lower.

    Raises:
        PermissionDeniedError: the tenant may not ask for it.
    """
    highest = TIERS[0] if caller.account is None else caller.account.max_tier
    if requested is None:
        return max(Tier.STANDARD, highest, key=TIERS.index)
    if TIERS.index(requested) < TIERS.index(highest):
        allowed = ", ".join(TIERS[TIERS.index(highest) :])
        message = f"The priority '{requested}' is above what this tenant may use; allowed is: {allowed}."
        raise PermissionDeniedError(message, "priority", "priority_not_allowed")
    return requested


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


def find_tenant(table: AccessTable, key: str, now: float) -> Tenant:
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
