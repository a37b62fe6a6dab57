"""Who may ask for what: tenants and their API keys, as plain data. No I/O.

A tenant is whose videos they are and among whom the devices are shared out. Its keys are known only by their hashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.jobs import DEFAULT_TENANT, Job, Tier

TENANT_PATTERN = "[A-Za-z0-9._-]{1,64}"
TENANT_ALLOWED = "1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"
DAY_S = 86_400


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


NOBODY = AccessTable(-1, {}, {})


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
