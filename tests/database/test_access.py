"""Tenants, keys and usage in SQL."""

import base64
from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from serve_app.access.secret_box import CLEAR, SecretBox
from serve_app.access.tenants import AccessTable, day_of, key_hash, shown_key_hash, tenant_of_key
from serve_app.database import access as store
from serve_app.database.connection import Database
from serve_app.errors import UnauthenticatedError
from serve_app.jobs import Tier

DAY = 86_400


async def table(database: Database) -> AccessTable:
    return await database.run(store.load_access)


async def test_a_new_installation_has_nobody(database: Database) -> None:
    assert await table(database) == AccessTable(0, {}, {})


async def test_a_tenant_has_the_defaults_and_is_made_once(database: Database) -> None:
    made = await database.run(store.create_tenant, "acme", now=5.0)
    assert (made.name, made.max_tier, made.created_at) == ("acme", Tier.STANDARD, 5.0)
    assert made.weight is made.requests_per_minute is made.videos_per_minute is None
    assert made.max_queued is made.gpu_seconds_per_day is None
    assert await database.run(store.create_tenant, "acme", now=6.0) == made
    assert await database.run(store.list_tenants) == [made]
    assert await database.run(store.access_version) == 1


async def test_a_key_is_kept_by_its_hash_alone(database: Database) -> None:
    key, plain = await database.run(store.create_key, "acme", label="ci", expires_at=99.0, now=7.0)
    assert (key.tenant, key.label, key.expires_at, key.created_at) == ("acme", "ci", 99.0, 7.0)
    assert key.hash == key_hash(plain) and plain.startswith(key.hint) and plain not in repr(key)
    known = await table(database)
    assert known.keys == {key.hash: key}
    assert tenant_of_key(known, shown_key_hash(plain), 8.0) == known.tenants["acme"]
    assert tenant_of_key(known, shown_key_hash(plain), 8.0).max_tier is Tier.STANDARD


async def test_limits_are_set_and_taken_away(database: Database) -> None:
    before = await database.run(store.create_tenant, "acme", now=5.0)
    limits = {"weight": 2.5, "requests_per_minute": 60, "videos_per_minute": 5, "max_queued": 9}
    changes = {**limits, "gpu_seconds_per_day": 1e4, "max_tier": Tier.BATCH}
    changed = await database.run(store.change_tenant, "acme", changes=changes)
    assert changed is not None
    assert {field: getattr(changed, field) for field in changes} == changes
    assert changed.webhook_secret == before.webhook_secret
    again = await database.run(store.change_tenant, "acme", changes={"weight": None})
    assert again is not None and (again.weight, again.max_queued) == (None, 9)
    assert (await table(database)).tenants == {"acme": again}


async def test_who_is_not_there_is_not_changed(database: Database) -> None:
    assert await database.run(store.change_tenant, "acme", changes={"weight": 1.0}) is None
    assert await database.run(store.get_tenant, "acme") is None
    assert await database.run(store.delete_tenant, "acme") is False
    assert await database.run(store.revoke_key, "key_1", now=1.0) is None
    assert await database.run(store.access_version) == 0


async def test_setting_makes_a_new_tenant(database: Database) -> None:
    made = await database.run(store.set_tenant, "acme", changes={"max_queued": 3}, now=5.0)
    assert made.max_queued == 3
    assert await database.run(store.set_tenant, "acme", changes={}, now=6.0) == made


async def test_a_revoked_key_is_refused_and_stays_revoked(database: Database) -> None:
    key, plain = await database.run(store.create_key, "acme", label="", expires_at=None, now=7.0)
    for now in (8.0, 9.0):
        revoked = await database.run(store.revoke_key, key.id, now=now)
        assert revoked is not None and revoked.revoked_at == 8.0
    with pytest.raises(UnauthenticatedError):
        tenant_of_key(await table(database), shown_key_hash(plain), 10.0)


async def test_a_removed_tenant_takes_its_keys_along(database: Database) -> None:
    _, plain = await database.run(store.create_key, "acme", label="", expires_at=None, now=7.0)
    other, _ = await database.run(store.create_key, "other", label="", expires_at=None, now=7.0)
    assert await database.run(store.delete_tenant, "acme") is True
    assert await database.run(store.list_keys) == [other]
    await database.run(store.create_tenant, "acme", now=8.0)
    with pytest.raises(UnauthenticatedError):
        tenant_of_key(await table(database), shown_key_hash(plain), 9.0)


async def test_keys_are_listed_by_tenant_and_age(database: Database) -> None:
    for tenant, now in (("b", 1.0), ("a", 3.0), ("a", 2.0)):
        await database.run(store.create_key, tenant, label="", expires_at=None, now=now)
    found = await database.run(store.list_keys)
    assert [(key.tenant, key.created_at) for key in found] == [("a", 2.0), ("a", 3.0), ("b", 1.0)]
    assert await database.run(store.list_keys, "b") == found[2:]


async def test_every_change_counts_the_version_up_and_nothing_else_does(database: Database) -> None:
    key, _ = await database.run(store.create_key, "acme", label="", expires_at=None, now=1.0)
    version = await database.run(store.access_version)
    changes: list[Callable[[Connection], object]] = [
        lambda c: store.create_key(c, "acme", label="", expires_at=None, now=2.0),
        lambda c: store.change_tenant(c, "acme", changes={"weight": 2.0}),
        lambda c: store.revoke_key(c, key.id, now=3.0),
        lambda c: store.create_tenant(c, "other", now=4.0),
        lambda c: store.delete_tenant(c, "other"),
    ]
    for number, change in enumerate(changes, version + 1):
        await database.run(change)
        assert await database.run(store.access_version) == (await table(database)).version == number
    others: list[Callable[[Connection], object]] = [
        lambda c: store.create_tenant(c, "acme", now=5.0),
        lambda c: store.change_tenant(c, "acme", changes={}),
        lambda c: store.revoke_key(c, key.id, now=6.0),
        lambda c: store.delete_tenant(c, "other"),
        store.installation_webhook_secret,
        lambda c: store.record_usage(c, "acme", ended_at=7.0, gpu_seconds=1.0),
    ]
    for other in others:
        await database.run(other)
    assert await database.run(store.access_version) == version + len(changes)


async def test_a_second_process_sees_the_change(database_url: str, database: Database) -> None:
    await table(database)
    other = Database(database_url)
    await other.run(store.create_key, "acme", label="", expires_at=None, now=1.0)
    assert list((await table(database)).tenants) == ["acme"]
    other.close()


async def test_webhook_secrets_have_the_standard_form(database: Database) -> None:
    tenant = await database.run(store.create_tenant, "acme", now=1.0)
    own = await database.run(store.installation_webhook_secret)
    assert await database.run(store.installation_webhook_secret) == own != tenant.webhook_secret
    for secret in (own, tenant.webhook_secret):
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 24
        assert secret not in repr(tenant)


async def test_secrets_that_were_kept_as_they_are_are_sealed(database: Database) -> None:
    box, other = SecretBox(bytes(32)), SecretBox(bytes([1] * 32))
    before = await database.run(store.create_tenant, "acme", now=1.0)
    own = await database.run(store.installation_webhook_secret)
    assert await database.run(store.seal_webhook_secrets, box=CLEAR) == []
    assert await database.run(store.seal_webhook_secrets, box=box) == []
    after = await database.run(store.get_tenant, "acme")
    assert after is not None and after.webhook_secret != before.webhook_secret
    assert box.open(after.webhook_secret, "acme") == before.webhook_secret
    sealed = await database.run(store.installation_webhook_secret)
    assert sealed != own == box.open(sealed, store.INSTALLATION)
    assert await database.run(store.seal_webhook_secrets, box=box) == []
    assert await database.run(store.seal_webhook_secrets, box=other) == ["acme", store.INSTALLATION]
    assert await database.run(store.get_tenant, "acme") == after
    await database.run(store.set_tenant, "new", changes={}, now=2.0, box=box)
    made = await database.run(store.get_tenant, "new")
    assert made is not None and box.open(made.webhook_secret, "new").startswith("whsec_")


async def test_usage_is_summed_by_day_and_tenant(database: Database) -> None:
    used = (("acme", 10.0, 1.5), ("acme", DAY - 1.0, 2.0), ("acme", float(DAY), 4.0), ("other", 10.0, 8.0))
    for tenant, ended_at, seconds in used:
        await database.run(store.record_usage, tenant, ended_at=ended_at, gpu_seconds=seconds)
    assert await database.run(store.day_usage, "acme", day=0) == store.DayUsage("acme", 0, 3.5, 2)
    assert await database.run(store.day_usage, "acme", day=1) == store.DayUsage("acme", 1, 4.0, 1)
    assert await database.run(store.day_usage, "acme", day=2) == store.DayUsage("acme", 2, 0.0, 0)
    days = [("acme", 0, 3.5, 2), ("other", 0, 8.0, 1), ("acme", 1, 4.0, 1)]
    assert await database.run(store.usage_since, day=0) == [store.DayUsage(*day) for day in days]
    assert await database.run(store.usage_since, day=1) == [store.DayUsage(*days[2])]
    assert await database.run(store.usage_since, day=0, tenant="other") == [store.DayUsage(*days[1])]


@pytest.mark.parametrize(("at", "day"), [(0.0, 0), (DAY - 0.001, 0), (float(DAY), 1), (1_700_000_000.5, 19_675)])
def test_days_begin_at_midnight_utc(at: float, day: int) -> None:
    assert day_of(at) == day
