"""The benchmarks fill databases."""

from tests.support.servers.postgres import database_url, postgres_uri

__all__ = ["database_url", "postgres_uri"]
