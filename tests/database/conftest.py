"""Each test of the SQL runs on SQLite and on Postgres."""

from tests.support.postgres import database_url, postgres_uri

__all__ = ["database_url", "postgres_uri"]
