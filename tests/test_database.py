import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text

from deployments.errors import RegistryUnavailableError
from serve_app.database import Database, migrate
from serve_app.schema import metadata


def _insert(connection: Connection, value: int) -> int:
    connection.execute(
        text("INSERT INTO job_moves (job_id, at, state, stage, attempt, note) VALUES ('j', :v, '', '', 1, '')"),
        {"v": value},
    )
    return value


def _count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM job_moves")).scalar_one())


def _insert_then_raise(connection: Connection) -> None:
    _insert(connection, -1)
    raise LookupError("on purpose")


async def test_what_arrives_together_is_all_committed(database_url: str) -> None:
    database = Database(database_url)
    results = await asyncio.gather(*(database.run(_insert, n) for n in range(600)))
    assert results == list(range(600))
    database.close()
    reopened = Database(database_url)
    assert await reopened.run(_count) == 600
    reopened.close()


async def test_an_operation_that_raises_takes_nothing_from_its_neighbours(database_url: str) -> None:
    database = Database(database_url)
    calls = [database.run(_insert, 1), database.run(_insert_then_raise), database.run(_insert, 2)]
    first, failed, second = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, second) == (1, 2)
    assert isinstance(failed, LookupError)
    assert await database.run(_count) == 2
    database.close()


async def test_migrations_make_the_tables_of_the_schema(database_url: str) -> None:
    Database(database_url).close()
    engine = create_engine(database_url)
    migrate(engine)  # a second time changes nothing
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_a_database_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    database = Database(f"sqlite:///{path}")

    def limit_pages(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE big AS SELECT randomblob(100000) AS b")

    await database.run(limit_pages)
    with pytest.raises(RegistryUnavailableError, match="full"):
        await database.run(fill)
    assert await database.run(_count) == 0
    database.close()
