import hashlib
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.tenants import (
    AccessTable,
    ApiKey,
    Caller,
    Tenant,
    key_hash,
    key_hint,
    new_key,
    shown_key_hash,
    tenant_of_key,
    tier_of,
)
from serve_app.errors import PermissionDeniedError, UnauthenticatedError
from serve_app.jobs import Tier

ACME = Tenant("acme", Tier.STANDARD, "whsec_x", 0.0)


def table(key: str, expires_at: float | None = None, revoked_at: float | None = None) -> AccessTable:
    entry = ApiKey("key_1", "acme", key_hash(key), key_hint(key), "", 0.0, expires_at, revoked_at)
    return AccessTable(1, {"acme": ACME}, {entry.hash: entry})


def refusal(access: AccessTable, key: str, now: float = 100.0) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as caught:
        tenant_of_key(access, shown_key_hash(key), now)
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    return caught.value


def test_a_key_is_made_of_32_random_bytes() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"ms-[A-Za-z0-9_-]{43}", key) for key in made)


def test_a_key_is_kept_as_its_sha256_and_a_hint() -> None:
    key = new_key()
    assert key_hash(key) == hashlib.sha256(key.encode()).hexdigest()
    assert key.startswith(key_hint(key)) and len(key_hint(key)) == 8


def test_a_known_key_is_its_tenant() -> None:
    key = new_key()
    assert tenant_of_key(table(key), shown_key_hash(key), 100.0) is ACME
    assert tenant_of_key(table(key, expires_at=100.1), shown_key_hash(key), 100.0) is ACME


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_a_key_is_good_before_it_expires_and_never_after(expires_at: float, now: float) -> None:
    key = new_key()
    if now < expires_at:
        assert tenant_of_key(table(key, expires_at), shown_key_hash(key), now) is ACME
    else:
        assert refusal(table(key, expires_at), key, now).code == "expired_api_key"


def test_each_refusal_says_why_and_what_to_do() -> None:
    key, other = new_key(), new_key()
    without_tenants = AccessTable(2, {}, table(key).keys)
    refusals = {
        "not known": refusal(table(key), other),
        "no API key of this server": refusal(table(key), f"{key}x"),
        "was revoked": refusal(table(key, revoked_at=50.0), key),
        "has expired": refusal(table(key, expires_at=100.0), key),
        "tenant that was removed": refusal(without_tenants, key),
    }
    for words, error in refusals.items():
        assert words in error.message
        assert re.search(r"Check that|Ask the operator", error.message)
    assert {error.code for error in refusals.values()} == {"invalid_api_key", "revoked_api_key", "expired_api_key"}


def test_revoked_goes_before_expired() -> None:
    key = new_key()
    assert refusal(table(key, expires_at=1.0, revoked_at=2.0), key).code == "revoked_api_key"


@given(st.text())
def test_nothing_but_the_key_is_good_and_nothing_given_is_echoed(given_key: str) -> None:
    error = refusal(table(new_key()), given_key)
    assert len(given_key) < 4 or given_key not in error.message


@given(st.integers(0, 45), st.characters())
def test_a_key_with_one_other_character_is_unknown(at: int, character: str) -> None:
    key = new_key()
    changed = key[:at] + character + key[at + 1 :]
    if changed != key:
        assert refusal(table(key), changed, math.inf).code == "invalid_api_key"


ALLOWED = {
    Tier.INTERACTIVE: [Tier.INTERACTIVE, Tier.STANDARD, Tier.BATCH],
    Tier.STANDARD: [Tier.STANDARD, Tier.BATCH],
    Tier.BATCH: [Tier.BATCH],
}


@pytest.mark.parametrize("highest", Tier)
@pytest.mark.parametrize("requested", Tier)
def test_nobody_goes_above_their_tier(highest: Tier, requested: Tier) -> None:
    caller = Caller("acme", key_tenant=replace(ACME, max_tier=highest))
    if requested in ALLOWED[highest]:
        assert tier_of(caller, requested) is requested
        return
    with pytest.raises(PermissionDeniedError) as caught:
        tier_of(caller, requested)
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "priority_not_allowed", "priority")
    assert caught.value.message.endswith(f"allowed is: {', '.join(ALLOWED[highest])}.")


def test_without_a_requested_tier_it_is_standard_or_less() -> None:
    without = {highest: tier_of(Caller("acme", key_tenant=replace(ACME, max_tier=highest)), None) for highest in Tier}
    assert without == {
        Tier.INTERACTIVE: Tier.STANDARD,
        Tier.STANDARD: Tier.STANDARD,
        Tier.BATCH: Tier.BATCH,
    }


@pytest.mark.parametrize("requested", [None, *Tier])
def test_without_keys_every_tier_is_allowed(requested: Tier | None) -> None:
    assert tier_of(Caller(), requested) is (requested or Tier.STANDARD)
