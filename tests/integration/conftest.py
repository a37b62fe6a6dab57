"""Real parts: an object store, databases, routes behind sockets."""

from tests.support.http.api_stand_in import api
from tests.support.http.fixtures import client, services, unfed
from tests.support.postgres import database_url, postgres_uri
from tests.support.storage import local_port, object_store, storage_settings

__all__ = [
    "api",
    "client",
    "database_url",
    "local_port",
    "object_store",
    "postgres_uri",
    "services",
    "storage_settings",
    "unfed",
]
