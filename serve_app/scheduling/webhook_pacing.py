"""Who webhooks are being sent to at this moment, so that one slow target holds up no others. Pure."""

from collections import Counter
from typing import Self

MAX_AT_ONCE = 20
MAX_PER_TENANT = 12
MAX_PER_ORIGIN = 4


def origin_of(url: str) -> str:
    """Scheme, host and port, as they are written in the URL."""
    scheme, _, rest = url.partition("://")
    ends = [at for at in (rest.find("/"), rest.find("?")) if at >= 0]
    return f"{scheme}://{rest[: min(ends)] if ends else rest}"


class Lanes:
    """Counts what is under way, by origin and by tenant."""

    def __init__(self) -> None:
        self._origins: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """How many may be added in all."""
        return MAX_AT_ONCE - self._tenants.total()

    @property
    def full_origins(self) -> list[str]:
        return sorted(origin for origin, count in self._origins.items() if count >= MAX_PER_ORIGIN)

    @property
    def full_tenants(self) -> list[str]:
        return sorted(tenant for tenant, count in self._tenants.items() if count >= MAX_PER_TENANT)

    def enter(self, tenant: str, url: str) -> bool:
        """Add one; False, and nothing is added, if there is no room for it."""
        origin = origin_of(url)
        full = self._origins[origin] >= MAX_PER_ORIGIN or self._tenants[tenant] >= MAX_PER_TENANT
        if full or self.free <= 0:
            return False
        self._origins[origin] += 1
        self._tenants[tenant] += 1
        return True

    def leave(self, tenant: str, url: str) -> None:
        """Take one away that was added."""
        for counter, name in ((self._origins, origin_of(url)), (self._tenants, tenant)):
            counter[name] -= 1
            if counter[name] <= 0:
                del counter[name]

    def copy(self) -> Self:
        other = type(self)()
        other._origins, other._tenants = self._origins.copy(), self._tenants.copy()
        return other
