"""The commands `mochi-serve keys` and `mochi-serve tenants`.

They change the database itself, whether a server runs or not; one that runs notices within a second or two.
"""

import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from deployments.errors import MochiServeError
from serve_app.access.exposure import keys_needed
from serve_app.access.secret_box import LostSecretError, SecretBox, webhook_key
from serve_app.access.tenants import TENANT_ALLOWED, TENANT_PATTERN, Tenant, day_of
from serve_app.cli.interrupts import run_interruptible
from serve_app.cli.options import command, override_data_dir
from serve_app.cli.output import Output
from serve_app.cli.tables import key_json, keys_table, tenant_json, tenants_table, usage_json, usage_table
from serve_app.client.errors import FAILED, OK, WRONG_USAGE
from serve_app.config import DAY_S, PROFILE_VARIABLE, AppSettings, load_settings
from serve_app.database import access as access_sql
from serve_app.errors import ConfigError
from serve_app.jobs import Tier
from serve_app.local.plan import read_settings

if TYPE_CHECKING:
    from serve_app.database.connection import Database

MAX_LIMIT = 1_000_000_000
MAX_LABEL_CHARS = 128
MAX_EXPIRES_DAYS = 36_500
DEFAULT_CONFIG = Path("serve_config.yaml")

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke.")
tenants = typer.Typer(no_args_is_help=True, help="Tenants: what each may use, and what it used.")


@dataclass(frozen=True, slots=True)
class Installation:
    """What the commands work on, whether its server runs or not."""

    settings: AppSettings
    database: "Database"

    @property
    def box(self) -> SecretBox:
        """Of webhook secrets. Raises LostSecretError."""
        return webhook_key(self.settings).box()


@dataclass(frozen=True, slots=True)
class InstallationOptions:
    """Which installation a command works on, and how results are printed."""

    config: Annotated[
        Path, typer.Option(help="The Serve config; it names the profile that says where the database is.")
    ] = DEFAULT_CONFIG
    data: Annotated[Path | None, typer.Option(help="The data folder, if `serve` was given one.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False

    def run(self, work: Callable[[Installation, Output], Awaitable[None]]) -> None:
        """Do the work on the installation's database.

        Raises:
            typer.Exit: the configuration is wrong, or the database does not work.
        """
        from serve_app.database.connection import Database

        output = Output(self.as_json)

        async def work_with_database(settings: AppSettings) -> int:
            database = Database(settings.database_url)
            try:
                await work(Installation(settings, database), output)
            finally:
                database.close()
            return OK

        try:
            code = run_interruptible(work_with_database(self._settings()))
        except ConfigError as error:
            output.fail(str(error), WRONG_USAGE)
        except MochiServeError as error:
            output.fail(str(error), FAILED)
        if code != OK:
            raise typer.Exit(code)

    def _settings(self) -> AppSettings:
        """As `serve` reads them; on a cluster there is no Serve config, and the environment names the profile."""
        override_data_dir(self.data)
        if self.config == DEFAULT_CONFIG and not self.config.exists() and os.environ.get(PROFILE_VARIABLE):
            return load_settings()
        return read_settings(self.config)


@dataclass(frozen=True, slots=True)
class Limit:
    """The value of an option for a limit."""

    value: float | None  # None where the option says `none`, which takes the limit away


def _limit(number: Callable[[str], float], least: float, most: float) -> Callable[[str], Limit]:
    """A parser of an option. number: int or float."""

    def parse(text: str) -> Limit:
        if text == "none":
            return Limit(None)
        try:
            value = number(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise typer.BadParameter(f"{text!r} must be {number.__name__} from {least:g} to {most:g}, or none")
        return Limit(value)

    return parse


def _tenant_name(text: str) -> str:
    if not re.fullmatch(TENANT_PATTERN, text):
        raise typer.BadParameter(f"a tenant's name must be {TENANT_ALLOWED}")
    return text


def _check_label(label: str) -> str:
    if len(label) > MAX_LABEL_CHARS:
        raise typer.BadParameter(f"must have at most {MAX_LABEL_CHARS} characters")
    return label


def _check_expires_days(days: float | None) -> float | None:
    if days is not None and not 0 < days <= MAX_EXPIRES_DAYS:
        raise typer.BadParameter(f"must be above 0 and at most {MAX_EXPIRES_DAYS}")
    return days


_whole = _limit(int, 1, MAX_LIMIT)
TenantName = Annotated[str, typer.Argument(parser=_tenant_name, metavar="NAME")]


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """What of a tenant is to change, by the names of its columns; None for what stays as it is."""

    max_tier: Annotated[Tier | None, typer.Option("--tier", help="The highest priority it may ask for.")] = None
    weight: Annotated[
        Limit | None, typer.Option(parser=_limit(float, 0.001, 1000), metavar="NUMBER|none", help="Its share.")
    ] = None
    requests_per_minute: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="Of all kinds, at each HTTP replica.")
    ] = None
    videos_per_minute: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="New videos, in all.")
    ] = None
    max_queued: Annotated[
        Limit | None, typer.Option(parser=_whole, metavar="N|none", help="Videos that may wait at once.")
    ] = None
    gpu_seconds_per_day: Annotated[
        Limit | None, typer.Option(parser=_limit(float, 0, MAX_LIMIT), metavar="NUMBER|none", help="Of a day in UTC.")
    ] = None

    def changes(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.value if isinstance(value, Limit) else value
            for name, value in values.items()
            if value is not None
        }


@keys.command("create")
@command(InstallationOptions)
async def create_key(
    installation: Installation,
    output: Output,
    tenant: Annotated[str, typer.Option(parser=_tenant_name, metavar="NAME", help="Whose key; may be a new tenant.")],
    label: Annotated[str, typer.Option(callback=_check_label, help="What the key is for.")] = "",
    expires_days: Annotated[
        float | None, typer.Option(callback=_check_expires_days, help="Days until it ends; without, never.")
    ] = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    now = time.time()
    expires_at = None if expires_days is None else now + expires_days * DAY_S
    key, plain = await installation.database.run(
        access_sql.create_key, tenant, label=label, expires_at=expires_at, now=now, box=installation.box
    )
    output.result({**key_json(key), "key": plain}, plain)
    if not output.as_json:
        output.message(
            f"The key {key.id} of the tenant {tenant}. Keep it now: it is not shown again, only its hash is kept."
        )
    mode = installation.settings.access.mode
    if not keys_needed(mode):
        output.message(f"Note: access.mode is {mode}, so no key is asked for; set it to keys.")


@keys.command("list")
@command(InstallationOptions)
async def list_keys(
    installation: Installation,
    output: Output,
    tenant: Annotated[str | None, typer.Option(parser=_tenant_name, metavar="NAME", help="Only this one's.")] = None,
) -> None:
    """List the keys, by their first characters."""
    api_keys = await installation.database.run(access_sql.list_keys, tenant)
    output.result([key_json(key) for key in api_keys], keys_table(api_keys))


@keys.command("revoke")
@command(InstallationOptions)
async def revoke_key(
    installation: Installation,
    output: Output,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` tells it.")],
) -> None:
    """End a key for good."""
    key = await installation.database.run(access_sql.revoke_key, key_id, now=time.time())
    if key is None:
        output.fail(f"there is no key {key_id!r}; `mochi-serve keys list` tells the ids", FAILED)
    output.result(key_json(key), f"The key {key.id} of the tenant {key.tenant} is revoked.")


@tenants.command("list")
@command(InstallationOptions)
async def list_tenants(installation: Installation, output: Output) -> None:
    """List the tenants and what each may use."""
    rows = await installation.database.run(access_sql.list_tenants)
    output.result([tenant_json(tenant) for tenant in rows], tenants_table(rows))


@tenants.command("show")
@command(InstallationOptions)
async def show_tenant(installation: Installation, output: Output, name: TenantName) -> None:
    """Tell all of a tenant: limits, keys, what it used today, and the secret its webhooks are signed with."""
    tenant = await installation.database.run(access_sql.get_tenant, name)
    if tenant is None:
        _fail_without_tenant(output, name)
    api_keys = await installation.database.run(access_sql.list_keys, name)
    today = await installation.database.run(access_sql.day_usage, name, day=day_of(time.time()))
    secret, told = _webhook_secret(installation, tenant)
    value = {
        **tenant_json(tenant),
        "webhook_secret": secret,
        "keys": [key_json(key) for key in api_keys],
        "used_today": {"gpu_seconds": today.gpu_seconds, "videos": today.videos},
    }
    output.result(
        value,
        tenants_table([tenant]),
        keys_table(api_keys),
        f"Today (UTC): {today.videos} videos, {today.gpu_seconds:.1f} GPU-seconds",
        f"Webhook secret: {told}",
    )


@tenants.command("set")
@command(InstallationOptions)
async def set_tenant(
    installation: Installation,
    output: Output,
    name: TenantName,
    options: TenantOptions,
    new_webhook_secret: Annotated[
        bool, typer.Option("--new-webhook-secret", help="Draw a new secret; the old one signs nothing more.")
    ] = False,
) -> None:
    """Set what a tenant may use, and make it if it is new; what is not named stays as it is."""
    changes = options.changes()
    if new_webhook_secret:
        changes["webhook_secret"] = installation.box.seal(access_sql.new_webhook_secret(), name)
    tenant = await installation.database.run(
        access_sql.set_tenant, name, changes=changes, now=time.time(), box=installation.box
    )
    output.result(tenant_json(tenant), tenants_table([tenant]))


@tenants.command("remove")
@command(InstallationOptions)
async def remove_tenant(installation: Installation, output: Output, name: TenantName) -> None:
    """Remove a tenant and its keys. Its videos stay until they expire, and nobody can see them by a key."""
    if not await installation.database.run(access_sql.delete_tenant, name):
        _fail_without_tenant(output, name)
    output.result({"name": name, "removed": True}, f"The tenant {name} and its keys are removed.")


@tenants.command("usage")
@command(InstallationOptions)
async def usage(
    installation: Installation,
    output: Output,
    name: Annotated[str | None, typer.Argument(parser=_tenant_name, metavar="[NAME]")] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How many days back, today included.")] = 30,
) -> None:
    """Tell what the videos that ended on each day (UTC) cost."""
    first = day_of(time.time()) - days + 1
    rows = await installation.database.run(access_sql.usage_since, day=first, tenant=name)
    output.result([usage_json(row) for row in rows], usage_table(rows))


@tenants.command("webhook-secret")
@command(InstallationOptions)
async def webhook_secret(
    installation: Installation,
    output: Output,
    new: Annotated[bool, typer.Option("--new", help="Draw a new secret; the old one signs nothing more.")] = False,
) -> None:
    """Tell the secret of those who are no tenants: what webhooks are signed with where no keys are needed."""
    if new:
        await installation.database.run(access_sql.replace_installation_webhook_secret, box=installation.box)
    kept = await installation.database.run(access_sql.installation_webhook_secret, box=installation.box)
    secret = installation.box.open(kept, access_sql.INSTALLATION)
    output.result({"webhook_secret": secret}, secret)


def _webhook_secret(installation: Installation, tenant: Tenant) -> tuple[str | None, str]:
    """A tenant's secret, None if it cannot be read; and what people are told."""
    try:
        secret = installation.box.open(tenant.webhook_secret, tenant.name)
    except LostSecretError as error:
        return None, f"{error} (--new-webhook-secret)"
    return secret, secret


def _fail_without_tenant(output: Output, name: str) -> NoReturn:
    output.fail(f"there is no tenant {name!r}; `mochi-serve tenants list` tells them", FAILED)
