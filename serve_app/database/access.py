"""Tenants, their keys and what they used, in SQL. Functions of a connection.

Every change of tenants or keys increments a version in the same transaction. Whoever keeps the
tenants and keys in memory reads them again when this one number has changed.
"""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Integer, Row, String, cast, delete, insert, select, update

from serve_app.access.secret_box import CLEAR, LostSecretError, SecretBox
from serve_app.access.tenants import AccessTable, ApiKey, Tenant, day_of, key_hash, key_hint, new_key
from serve_app.database.engine import insert_into
from serve_app.database.schema import api_keys, meta, tenants, usage
from serve_app.jobs import Tier

VERSION = "access_version"
WEBHOOK_SECRET = "webhook_secret"
SECRET_BYTES = 24
# The owner of the secret of those who are no tenants; no tenant has this name.
INSTALLATION = "(installation)"


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What a tenant's videos that ended on one day cost."""

    tenant: str
    day: int  # days since 1970-01-01, UTC
    gpu_seconds: float
    videos: int


def load_access(connection: Connection) -> AccessTable:
    """All tenants and keys. The version is read first, so that it is never newer than what comes with it."""
    version = access_version(connection)
    tenants_by_name = {tenant.name: tenant for tenant in list_tenants(connection)}
    return AccessTable(version, tenants_by_name, {key.hash: key for key in list_keys(connection)})


def access_version(connection: Connection) -> int:
    """The number of changes so far, 0 before the first."""
    value = connection.execute(select(meta.c.value).where(meta.c.name == VERSION)).scalar_one_or_none()
    return 0 if value is None else int(value)


def list_tenants(connection: Connection) -> list[Tenant]:
    """All tenants by name."""
    return [_to_tenant(row) for row in connection.execute(select(tenants).order_by(tenants.c.name))]


def get_tenant(connection: Connection, name: str) -> Tenant | None:
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    return None if row is None else _to_tenant(row)


def create_tenant(connection: Connection, name: str, *, now: float, box: SecretBox = CLEAR) -> Tenant:
    """The tenant of this name, with the defaults (tier standard, no limits of its own) if it was not there.

    Args:
        box: what its webhook secret is sealed in.
    """
    tenant = Tenant(name, Tier.STANDARD, box.seal(new_webhook_secret(), name), now)
    query = insert_into(connection, tenants).on_conflict_do_nothing().returning(tenants.c.name)
    if connection.execute(query, asdict(tenant)).first() is not None:
        _increment_version(connection)
        return tenant
    existing = get_tenant(connection, name)
    assert existing is not None
    return existing


def change_tenant(connection: Connection, name: str, *, changes: Mapping[str, Any]) -> Tenant | None:
    """Set fields of Tenant, by their names; None if there is no such tenant."""
    if not changes:
        return get_tenant(connection, name)
    query = update(tenants).where(tenants.c.name == name).values(**changes).returning(*tenants.c)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    _increment_version(connection)
    return _to_tenant(row)


def set_tenant(
    connection: Connection, name: str, *, changes: Mapping[str, Any], now: float, box: SecretBox = CLEAR
) -> Tenant:
    """As `change_tenant`; a tenant that is not there is made first."""
    tenant = create_tenant(connection, name, now=now, box=box)
    return change_tenant(connection, name, changes=changes) or tenant


def delete_tenant(connection: Connection, name: str) -> bool:
    """Remove a tenant with its keys; False if there is none. Its videos stay, and what it used stays counted."""
    if not connection.execute(delete(tenants).where(tenants.c.name == name)).rowcount:
        return False
    connection.execute(delete(api_keys).where(api_keys.c.tenant == name))
    _increment_version(connection)
    return True


def list_keys(connection: Connection, tenant: str | None = None) -> list[ApiKey]:
    """All keys, or those of one tenant, by tenant and age; also those that are no longer valid."""
    query = select(api_keys).order_by(api_keys.c.tenant, api_keys.c.created_at, api_keys.c.id)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    return [_to_key(row) for row in connection.execute(query)]


def create_key(
    connection: Connection,
    tenant: str,
    *,
    label: str,
    expires_at: float | None,
    now: float,
    box: SecretBox = CLEAR,
) -> tuple[ApiKey, str]:
    """Make a key, and its tenant if there is none.

    Args:
        label: what the key is for, in the operator's words.
        expires_at: Unix seconds.
        now: Unix seconds.
        box: what the webhook secret of a new tenant is sealed in.

    Returns:
        What is kept of the key, and the key itself, which is returned here and never again.
    """
    create_tenant(connection, tenant, now=now, box=box)
    plain = new_key()
    key = ApiKey(f"key_{uuid4().hex[:16]}", tenant, key_hash(plain), key_hint(plain), label, now, expires_at)
    connection.execute(insert(api_keys).values(**asdict(key)))
    _increment_version(connection)
    return key, plain


def revoke_key(connection: Connection, key_id: str, *, now: float) -> ApiKey | None:
    """End a key for good; one that was revoked before stays as it is. None if no key has this id."""
    is_this = api_keys.c.id == key_id
    unrevoked = update(api_keys).where(is_this, api_keys.c.revoked_at.is_(None))
    if connection.execute(unrevoked.values(revoked_at=now)).rowcount:
        _increment_version(connection)
    row = connection.execute(select(api_keys).where(is_this)).one_or_none()
    return None if row is None else _to_key(row)


def installation_webhook_secret(connection: Connection, *, box: SecretBox = CLEAR) -> str:
    """The secret, as it is kept, that signs the webhooks of tenants that have no row; drawn when it is first needed."""
    row = {"name": WEBHOOK_SECRET, "value": box.seal(new_webhook_secret(), INSTALLATION)}
    connection.execute(insert_into(connection, meta).on_conflict_do_nothing(), row)
    secret: str = connection.execute(select(meta.c.value).where(meta.c.name == WEBHOOK_SECRET)).scalar_one()
    return secret


def replace_installation_webhook_secret(connection: Connection, *, box: SecretBox) -> str:
    """Draw a new one; the old one signs nothing more."""
    connection.execute(delete(meta).where(meta.c.name == WEBHOOK_SECRET))
    return installation_webhook_secret(connection, box=box)


def seal_webhook_secrets(connection: Connection, *, box: SecretBox) -> list[str]:
    """Seal the webhook secrets that are kept as they are, as earlier versions did, or when there was no key.

    Returns:
        The owners of those that cannot be opened: the names of tenants, and INSTALLATION.
    """
    if connection.dialect.name == "sqlite":
        # What is replaced is overwritten, not only left unused.
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    lost: list[str] = []
    for name, kept in connection.execute(select(tenants.c.name, tenants.c.webhook_secret)).all():
        if _is_lost(box, kept, name):
            lost.append(name)
        elif (sealed := box.seal(kept, name)) != kept:
            connection.execute(update(tenants).where(tenants.c.name == name).values(webhook_secret=sealed))
    own = connection.execute(select(meta.c.value).where(meta.c.name == WEBHOOK_SECRET)).scalar_one_or_none()
    if own is not None and _is_lost(box, own, INSTALLATION):
        lost.append(INSTALLATION)
    elif own is not None and (sealed := box.seal(own, INSTALLATION)) != own:
        connection.execute(update(meta).where(meta.c.name == WEBHOOK_SECRET).values(value=sealed))
    return lost


def _is_lost(box: SecretBox, kept: str, owner: str) -> bool:
    try:
        box.open(kept, owner)
    except LostSecretError:
        return True
    return False


def new_webhook_secret() -> str:
    """`whsec_` and 24 random bytes in base64, the form of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def record_usage(connection: Connection, tenant: str, *, ended_at: float, gpu_seconds: float, videos: int = 1) -> None:
    """Count a job that ended at that time, Unix seconds; called in the transaction that ends it. videos: that it is."""
    row = {"tenant": tenant, "day": day_of(ended_at), "gpu_seconds": gpu_seconds, "videos": videos}
    query = insert_into(connection, usage)
    added = {
        "gpu_seconds": usage.c.gpu_seconds + query.excluded.gpu_seconds,
        "videos": usage.c.videos + query.excluded.videos,
    }
    connection.execute(query.on_conflict_do_update(index_elements=[usage.c.tenant, usage.c.day], set_=added), row)


def day_usage(connection: Connection, tenant: str, *, day: int) -> DayUsage:
    """What the tenant used on the day; zero if nothing."""
    query = select(usage).where(usage.c.tenant == tenant, usage.c.day == day)
    row = connection.execute(query).one_or_none()
    return DayUsage(tenant, day, gpu_seconds=0.0, videos=0) if row is None else DayUsage(**row._mapping)


def usage_since(connection: Connection, *, day: int, tenant: str | None = None) -> list[DayUsage]:
    """What was used on the days from `day` on, oldest first; by one tenant, or by all."""
    query = select(usage).where(usage.c.day >= day).order_by(usage.c.day, usage.c.tenant)
    if tenant is not None:
        query = query.where(usage.c.tenant == tenant)
    return [DayUsage(**row._mapping) for row in connection.execute(query)]


def _increment_version(connection: Connection) -> None:
    incremented = cast(cast(meta.c.value, Integer) + 1, String)
    query = insert_into(connection, meta).on_conflict_do_update(
        index_elements=[meta.c.name], set_={"value": incremented}
    )
    connection.execute(query, {"name": VERSION, "value": "1"})


def _to_tenant(row: Row[Any]) -> Tenant:
    values = dict(row._mapping)
    return Tenant(**{**values, "max_tier": Tier(values["max_tier"])})


def _to_key(row: Row[Any]) -> ApiKey:
    return ApiKey(**row._mapping)
