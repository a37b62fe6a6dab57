"""Routes over services in memory."""

from tests.support.http.fixtures import client, services, unfed

__all__ = ["client", "services", "unfed"]
