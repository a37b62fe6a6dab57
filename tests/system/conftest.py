"""The page in a browser, and routes over services in memory."""

from tests.support.browser.fixtures import browser, memory_app, tabs
from tests.support.http.fixtures import client, services, unfed

__all__ = ["browser", "client", "memory_app", "services", "tabs", "unfed"]
