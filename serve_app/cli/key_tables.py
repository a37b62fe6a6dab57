"""How tenants, keys and usage are shown: for programs as JSON, for people as tables. No secrets, no hashes."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Column, Table

from serve_app.access.tenants import DAY_S, ApiKey, Tenant
from serve_app.database.access import DayUsage


def key_json(key: ApiKey) -> dict[str, Any]:
    """All but the hash."""
    return {name: value for name, value in asdict(key).items() if name != "hash"}


def tenant_json(tenant: Tenant) -> dict[str, Any]:
    """All but the secret."""
    return {name: value for name, value in asdict(tenant).items() if name != "webhook_secret"}


def keys_table(found: list[ApiKey]) -> Table:
    """For 80 columns, with IDs that can be copied; when a key was made is told as JSON."""
    whole = [Column(name, no_wrap=True) for name in ("ID", "Key", "State")]
    table = Table(whole[0], Column("Tenant", overflow="fold"), whole[1], "Label", whole[2])
    now = time.time()
    for key in found:
        table.add_row(key.id, key.tenant, f"{key.hint}...", _plain(key.label), _state(key, now))
    return table


def _state(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return f"revoked {date(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"valid until {date(key.expires_at)}" if key.expires_at > now else f"expired {date(key.expires_at)}"


def tenants_table(found: list[Tenant]) -> Table:
    table = Table("Tenant", "Tier", "Weight", "Requests/min", "Videos/min", "Waiting", "GPU-seconds/day", "Since")
    for one in found:
        limits = (one.weight, one.requests_per_minute, one.videos_per_minute, one.max_queued, one.gpu_seconds_per_day)
        told = ("-" if limit is None else f"{limit:g}" for limit in limits)
        table.add_row(one.name, one.max_tier, *told, date(one.created_at))
    return table


def _plain(text: str) -> str:
    """Text that rich takes for no markup."""
    return text.replace("[", r"\[")


def usage_json(of: DayUsage) -> dict[str, Any]:
    return {**asdict(of), "day": date(of.day * DAY_S)}


def usage_table(found: list[DayUsage]) -> Table:
    table = Table("Day", "Tenant", "Videos", "GPU-seconds")
    for one in found:
        table.add_row(date(one.day * DAY_S), one.tenant, str(one.videos), f"{one.gpu_seconds:.1f}")
    return table


def date(at: float) -> str:
    """The day of a time in Unix seconds, in UTC."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
