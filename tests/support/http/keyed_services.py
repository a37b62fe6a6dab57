"""Services in memory that need keys, and tenants with one key each."""

from dataclasses import replace

from serve_app.access.tenants import AccessTable, ApiKey, Tenant, key_hash, key_hint, new_key
from serve_app.config import AccessSettings
from serve_app.jobs import Tier
from tests.support.http.fakes import FakeServices, shapes_settings


def keyed_services(
    *names: str, highest: Tier = Tier.INTERACTIVE, requests_per_minute: int | None = None
) -> tuple[FakeServices, dict[str, dict[str, str]]]:
    """The services, and by tenant the headers with its key.

    Args:
        highest: the priority that the tenants may ask for.
        requests_per_minute: of each tenant.
    """
    services = FakeServices(shapes_settings().model_copy(update={"access": AccessSettings(mode="keys")}))
    tenant = Tenant("", highest, "whsec_" + "A" * 32, 0.0, requests_per_minute=requests_per_minute)
    keys = {name: new_key() for name in names}
    services.memory.feed.access = AccessTable(
        1,
        {name: replace(tenant, name=name) for name in names},
        {key_hash(key): _known(name, key) for name, key in keys.items()},
    )
    return services, {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}


def _known(tenant: str, key: str) -> ApiKey:
    return ApiKey(f"key_{tenant}", tenant, key_hash(key), key_hint(key), "test", 0.0)
