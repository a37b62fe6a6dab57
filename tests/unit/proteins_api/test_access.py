"""Keys, rate limits and guards are those of the videos."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from deployments.proteins.esm2 import Esm2
from serve_app.access.tenants import AccessTable, ApiKey, Tenant, key_hash, key_hint, new_key
from serve_app.jobs import Tier
from tests.support.proteins.api import ProteinApi, running_api

KEY = new_key()
TENANT = Tenant("lab", Tier.STANDARD, "whsec_" + "A" * 32, 0.0, requests_per_minute=3)
TABLE = AccessTable(
    1, {"lab": TENANT}, {key_hash(KEY): ApiKey("key_1", "lab", key_hash(KEY), key_hint(KEY), "test", 0.0)}
)
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def keyed(model: Esm2) -> AsyncIterator[ProteinApi]:
    async with running_api(model, count=1, access=TABLE) as api:
        yield api


async def test_a_key_is_needed_and_its_tenants_limit_holds(keyed: ProteinApi) -> None:
    missing = await keyed.client.post("/predict", json={"sequence": "MKT"})
    assert missing.status_code == 401 and missing.json()["error"]["code"] == "missing_api_key"
    assert (await keyed.client.get("/health")).status_code == 200, "health needs none"
    for left in (2, 1, 0):
        answer = await keyed.client.post("/predict", json={"sequence": "MKT"}, headers=AUTHORIZED)
        assert answer.status_code == 200 and answer.headers["x-ratelimit-remaining-requests"] == str(left)
    refused = await keyed.client.post("/predict", json={"sequence": "MKT"}, headers=AUTHORIZED)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"


async def test_a_key_that_is_revoked_is_refused(model: Esm2) -> None:
    revoked = {hashed: replace(key, revoked_at=1.0) for hashed, key in TABLE.keys.items()}
    async with running_api(model, count=1, access=replace(TABLE, keys=revoked)) as api:
        answer = await api.client.post("/predict", json={"sequence": "MKT"}, headers=AUTHORIZED)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "revoked_api_key"


async def test_pages_of_other_sites_are_kept_out_of_a_server_without_keys(api: ProteinApi) -> None:
    foreign = {"Origin": "https://example.com"}
    answer = await api.client.post("/predict", json={"sequence": "MKT"}, headers=foreign)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_not_allowed"
    assert (await api.client.get("/health")).headers["x-content-type-options"] == "nosniff"
    unknown = await api.client.get("/nothing")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "unknown_url"
