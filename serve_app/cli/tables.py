"""Videos, keys, tenants and usage as tables for people and as JSON for programs: no secrets, no hashes."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from serve_app.access.tenants import ApiKey, Tenant
from serve_app.cli.output import printable
from serve_app.config import DAY_S
from serve_app.database.access import DayUsage

VIDEO_COLUMNS = ("id", "state", "progress", "created", "length", "size", "prompt")


def videos_table(videos: Iterable[Mapping[str, Any]]) -> Table:
    """Videos, one a row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in VIDEO_COLUMNS:
        # Where a terminal is too narrow, only what may wrap gives way: the prompt, which is cut instead.
        table.add_column(column, no_wrap=column != "prompt")
    for video in videos:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(video["created_at"]))
        length = f"{video['duration_s']:.3g} s"
        cells = (video["id"], video["state"], f"{video['progress']}%", created, length, video["size"])
        prompt = Text(printable(video["prompt"]), no_wrap=True, overflow="ellipsis")
        table.add_row(*(Text(printable(str(cell))) for cell in cells), prompt)
    return table


def fields_table(fields: Mapping[str, Any]) -> Table:
    """Names and values of one thing; what is null is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            table.add_row(Text(name, style="bold"), Text(printable(text)))
    return table


def key_json(key: ApiKey) -> dict[str, Any]:
    """All but the hash."""
    return {name: value for name, value in asdict(key).items() if name != "hash"}


def keys_table(keys: Iterable[ApiKey]) -> Table:
    """Keys for 80 columns, with IDs that can be copied; only the JSON has the time when a key was made."""
    table = Table(
        Column("ID", no_wrap=True),
        Column("Tenant", overflow="fold"),
        Column("Key", no_wrap=True),
        "Label",
        Column("State", no_wrap=True),
    )
    now = time.time()
    for key in keys:
        table.add_row(key.id, key.tenant, f"{key.hint}...", Text(printable(key.label)), _key_state(key, now))
    return table


def _key_state(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return f"revoked {date(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"valid until {date(key.expires_at)}" if key.expires_at > now else f"expired {date(key.expires_at)}"


def tenant_json(tenant: Tenant) -> dict[str, Any]:
    """All but the secret."""
    return {name: value for name, value in asdict(tenant).items() if name != "webhook_secret"}


def tenants_table(tenants: Iterable[Tenant]) -> Table:
    table = Table("Tenant", "Tier", "Weight", "Requests/min", "Videos/min", "Waiting", "GPU-seconds/day", "Since")
    for tenant in tenants:
        limits = (
            tenant.weight,
            tenant.requests_per_minute,
            tenant.videos_per_minute,
            tenant.max_queued,
            tenant.gpu_seconds_per_day,
        )
        cells = ("-" if limit is None else f"{limit:g}" for limit in limits)
        table.add_row(tenant.name, tenant.max_tier, *cells, date(tenant.created_at))
    return table


def usage_json(usage: DayUsage) -> dict[str, Any]:
    return {**asdict(usage), "day": date(usage.day * DAY_S)}


def usage_table(rows: Iterable[DayUsage]) -> Table:
    table = Table("Day", "Tenant", "Videos", "GPU-seconds")
    for row in rows:
        table.add_row(date(row.day * DAY_S), row.tenant, str(row.videos), f"{row.gpu_seconds:.1f}")
    return table


def date(unix_s: float) -> str:
    """The day of a time, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()
