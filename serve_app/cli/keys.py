"""The commands `mochi-serve keys` and `mochi-serve tenants`.

They change the database itself, whether a server runs or not; one that runs notices within a second or two.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from sqlalchemy import Connection

from deployments.errors import MochiServeError
from serve_app.access.exposure import keys_needed
from serve_app.access.tenants import TENANT_ALLOWED, TENANT_PATTERN, Tenant, day_of
from serve_app.cli.output import key_json, keys_table, tenant_json, tenants_table, usage_json, usage_table
from serve_app.config import DAY_S, OVERRIDE_PREFIX, PROFILE_VARIABLE, AppSettings, load_settings
from serve_app.database import access as access_sql
from serve_app.errors import ConfigError
from serve_app.jobs import Tier

BAD_CONFIG = 2
FAILED = 1
MOST = 1_000_000_000
LONGEST_LABEL = 128
DEFAULT_CONFIG = Path("serve_config.yaml")

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke.")
tenants = typer.Typer(no_args_is_help=True, help="Tenants: what each may use, and what it used.")
_out = Console()
_err = Console(stderr=True, soft_wrap=True)

P = ParamSpec("P")
T = TypeVar("T")


class Limit:
    """An option's number; None where it says `none`, which takes a limit away."""

    def __init__(self, value: float | None) -> None:
        self.value = value


def _whole(text: str) -> Limit:
    return _limit(text, int, 1, MOST)


def _weight(text: str) -> Limit:
    return _limit(text, float, 0.001, 1000)


def _seconds(text: str) -> Limit:
    return _limit(text, float, 0, MOST)


def _limit(text: str, kind: Callable[[str], float], least: float, most: float) -> Limit:
    if text == "none":
        return Limit(None)
    try:
        value = kind(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise typer.BadParameter(f"{text!r} must be {kind.__name__} from {least:g} to {most:g}, or none")
    return Limit(value)


def _tenant_name(text: str) -> str:
    if not re.fullmatch(TENANT_PATTERN, text):
        raise typer.BadParameter(f"a tenant's name must be {TENANT_ALLOWED}")
    return text


Config = Annotated[Path, typer.Option(help="The Serve config; it names the profile that says where the database is.")]
Data = Annotated[Path | None, typer.Option(help="The data folder, if `serve` was given one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TenantName = Annotated[str, typer.Argument(parser=_tenant_name, metavar="NAME")]


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(parser=_tenant_name, metavar="NAME", help="Whose key; may be a new tenant.")],
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires_days: Annotated[float | None, typer.Option(help="Days until it ends; without, never.")] = None,
    config: Config = DEFAULT_CONFIG,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    now = time.time()
    if expires_days is not None and not 0 < expires_days <= 36_500:
        raise typer.BadParameter("must be above 0 and at most 36500", param_hint="--expires-days")
    if len(label) > LONGEST_LABEL:
        raise typer.BadParameter(f"must have at most {LONGEST_LABEL} characters", param_hint="--label")
    settings = _settings(config, data)
    expires_at = None if expires_days is None else now + expires_days * DAY_S
    key, plain = _run(settings, access_sql.create_key, tenant, label=label, expires_at=expires_at, now=now)
    if as_json:
        _print_json({**key_json(key), "key": plain})
    else:
        _out.print(plain, markup=False, highlight=False, soft_wrap=True)
        _err.print(
            f"The key {key.id} of the tenant {tenant}. Keep it now: it is not shown again, only its hash is kept."
        )
    if not keys_needed(settings.access.mode):
        _err.print(f"Note: access.mode is {settings.access.mode}, so no key is asked for; set it to keys.")


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(parser=_tenant_name, metavar="NAME", help="Only this one's.")] = None,
    config: Config = DEFAULT_CONFIG,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, by their first characters."""
    found = _run(_settings(config, data), access_sql.list_keys, tenant)
    if as_json:
        _print_json([key_json(key) for key in found])
    else:
        _out.print(keys_table(found))


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` tells it.")],
    config: Config = DEFAULT_CONFIG,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """End a key for good."""
    key = _run(_settings(config, data), access_sql.revoke_key, key_id, now=time.time())
    if key is None:
        _fail(f"there is no key {key_id!r}; `mochi-serve keys list` tells the ids")
    if as_json:
        _print_json(key_json(key))
    else:
        _out.print(f"The key {key.id} of the tenant {key.tenant} is revoked.", highlight=False)


@tenants.command("list")
def list_tenants(config: Config = DEFAULT_CONFIG, data: Data = None, as_json: AsJson = False) -> None:
    """List the tenants and what each may use."""
    found = _run(_settings(config, data), access_sql.list_tenants)
    if as_json:
        _print_json([tenant_json(tenant) for tenant in found])
    else:
        _out.print(tenants_table(found))


@tenants.command("show")
def show_tenant(name: TenantName, config: Config = DEFAULT_CONFIG, data: Data = None, as_json: AsJson = False) -> None:
    """Tell all of a tenant: limits, keys, what it used today, and the secret its webhooks are signed with."""
    settings = _settings(config, data)
    tenant = _known(name, _run(settings, access_sql.get_tenant, name))
    found = _run(settings, access_sql.list_keys, name)
    used = _run(settings, access_sql.day_usage, name, day=day_of(time.time()))
    if as_json:
        told = {"webhook_secret": tenant.webhook_secret, "keys": [key_json(key) for key in found]}
        _print_json(
            {**tenant_json(tenant), **told, "used_today": {"gpu_seconds": used.gpu_seconds, "videos": used.videos}}
        )
        return
    _out.print(tenants_table([tenant]))
    _out.print(keys_table(found))
    _out.print(f"Today (UTC): {used.videos} videos, {used.gpu_seconds:.1f} GPU-seconds", highlight=False)
    _out.print(f"Webhook secret: {tenant.webhook_secret}", markup=False, highlight=False, soft_wrap=True)


@tenants.command("set")
def set_tenant(
    name: TenantName,
    tier: Annotated[Tier | None, typer.Option(help="The highest priority it may ask for.")] = None,
    weight: Annotated[Limit | None, typer.Option(parser=_weight, metavar="NUMBER|none", help="Its share.")] = None,
    requests_per_minute: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="Of all kinds, at each HTTP replica.")
    ] = None,
    videos_per_minute: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="New videos, in all.")
    ] = None,
    max_queued: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="Videos that may wait at once.")
    ] = None,
    gpu_seconds_per_day: Annotated[
        Limit | None, typer.Option(parser=_seconds, metavar="NUMBER|none", help="Of a day in UTC.")
    ] = None,
    new_webhook_secret: Annotated[
        bool, typer.Option("--new-webhook-secret", help="Draw a new secret; the old one signs nothing more.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Set what a tenant may use, and make it if it is new; what is not named stays as it is."""
    limits = {
        "weight": weight,
        "requests_per_minute": requests_per_minute,
        "videos_per_minute": videos_per_minute,
        "max_queued": max_queued,
        "gpu_seconds_per_day": gpu_seconds_per_day,
    }
    changes: dict[str, Any] = {field: limit.value for field, limit in limits.items() if limit is not None}
    if tier is not None:
        changes["max_tier"] = tier
    if new_webhook_secret:
        changes["webhook_secret"] = access_sql.new_webhook_secret()
    tenant = _run(_settings(config, data), access_sql.set_tenant, name, changes=changes, now=time.time())
    if as_json:
        _print_json(tenant_json(tenant))
    else:
        _out.print(tenants_table([tenant]))


@tenants.command("remove")
def remove_tenant(
    name: TenantName, config: Config = DEFAULT_CONFIG, data: Data = None, as_json: AsJson = False
) -> None:
    """Remove a tenant and its keys. Its videos stay until they expire, and nobody can see them by a key."""
    if not _run(_settings(config, data), access_sql.delete_tenant, name):
        _known(name, None)
    if as_json:
        _print_json({"name": name, "removed": True})
    else:
        _out.print(f"The tenant {name} and its keys are removed.", highlight=False)


@tenants.command("usage")
def usage(
    name: Annotated[str | None, typer.Argument(parser=_tenant_name, metavar="[NAME]")] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How many days back, today included.")] = 30,
    config: Config = DEFAULT_CONFIG,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the videos that ended on each day (UTC) cost."""
    first = day_of(time.time()) - days + 1
    found = _run(_settings(config, data), access_sql.usage_since, day=first, tenant=name)
    if as_json:
        _print_json([usage_json(one) for one in found])
        return
    _out.print(usage_table(found))


@tenants.command("webhook-secret")
def webhook_secret(config: Config = DEFAULT_CONFIG, data: Data = None, as_json: AsJson = False) -> None:
    """Tell the secret of those who are no tenants: what webhooks are signed with where no keys are needed."""
    secret = _run(_settings(config, data), access_sql.installation_webhook_secret)
    if as_json:
        _print_json({"webhook_secret": secret})
    else:
        _out.print(secret, markup=False, highlight=False, soft_wrap=True)


def _settings(config: Path, data: Path | None) -> AppSettings:
    """As `serve` reads them; where there is no Serve config, as on a cluster, of the profile in the environment."""
    from serve_app.local.plan import read_settings

    if data is not None:
        os.environ[f"{OVERRIDE_PREFIX}DATA_DIR"] = str(data.resolve())
    try:
        if config == DEFAULT_CONFIG and not config.exists() and os.environ.get(PROFILE_VARIABLE):
            return load_settings()
        return read_settings(config)
    except ConfigError as error:
        _fail(str(error), BAD_CONFIG)


def _run(
    settings: AppSettings, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """`function(connection, ...)` in one transaction on the database of the settings."""
    from serve_app.database.connection import Database

    async def work() -> T:
        database = Database(settings.database_url)
        try:
            return await database.run(function, *args, **kwargs)
        finally:
            database.close()

    try:
        return asyncio.run(work())
    except MochiServeError as error:
        _fail(str(error))


def _fail(message: str, code: int = FAILED) -> NoReturn:
    _err.print(f"mochi-serve: {message}", markup=False, highlight=False)
    raise typer.Exit(code)


def _known(name: str, tenant: Tenant | None) -> Tenant:
    if tenant is None:
        _fail(f"there is no tenant {name!r}; `mochi-serve tenants list` tells them")
    return tenant


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
