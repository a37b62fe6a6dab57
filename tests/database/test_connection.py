"""Operations of a database: in groups, in each other's way, and through outages."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from deployments.errors import RegistryUnavailableError
from serve_app.database import meta as meta_sql
from serve_app.database.connection import Database
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs import overview as overview_sql
from serve_app.database.jobs.listing import list_jobs
from serve_app.errors import UnknownJobError
from serve_app.jobs import Submission
from tests.support.registry.sql_jobs import SPEC, accept
from tests.support.servers.postgres import Postgres, fresh_database, running_postgres


def _insert(connection: Connection, value: int) -> int:
    connection.execute(
        text("INSERT INTO job_moves (job_id, at, state, stage, attempt, note) VALUES ('j', :v, '', '', 1, '')"),
        {"v": value},
    )
    return value


def _values(connection: Connection) -> list[int]:
    return [int(at) for at in connection.execute(text("SELECT at FROM job_moves ORDER BY at")).scalars()]


def _insert_then_raise(connection: Connection) -> None:
    _insert(connection, -1)
    raise LookupError("on purpose")


def _break_a_rule(connection: Connection) -> None:
    connection.execute(text("INSERT INTO meta (name, value) VALUES ('x', NULL)"))


async def together(database: Database, *operations: Callable[[Connection], object]) -> list[Any]:
    """Run these in one group: they arrive while the one before them is under way."""
    busy, go_on = threading.Event(), threading.Event()

    def block(_connection: Connection) -> None:
        busy.set()
        go_on.wait(60)

    blocked = asyncio.create_task(database.run(block))
    await asyncio.to_thread(busy.wait, 60)
    calls = [asyncio.create_task(database.run(operation)) for operation in operations]
    await asyncio.sleep(0)  # each call has queued its operation
    go_on.set()
    await blocked
    return await asyncio.gather(*calls, return_exceptions=True)


class Counted:
    """An operation that counts how often it was run."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.runs = 0

    def __call__(self, connection: Connection) -> int:
        self.runs += 1
        return _insert(connection, self.value)


async def test_what_arrives_together_is_all_committed(database_url: str) -> None:
    database = Database(database_url)
    results = await asyncio.gather(*(database.run(_insert, n) for n in range(600)))
    assert results == list(range(600))
    database.close()
    reopened = Database(database_url)
    assert await reopened.run(_values) == list(range(600))
    reopened.close()


@pytest.mark.parametrize(("bad", "kind"), [(_insert_then_raise, LookupError), (_break_a_rule, IntegrityError)])
async def test_an_operation_that_raises_takes_nothing_from_its_neighbours(
    database: Database, bad: Callable[[Connection], None], kind: type[Exception]
) -> None:
    first, second = Counted(1), Counted(2)
    results = await together(database, first, bad, second, bad)
    assert [type(result) for result in results] == [int, kind, int, kind]
    assert await database.run(_values) == [1, 2]
    assert (first.runs, second.runs) == (2, 1)


async def test_one_that_refuses_before_it_writes_makes_nobody_run_again(database: Database) -> None:
    first, second = Counted(1), Counted(2)
    results = await together(database, first, lambda c: list_jobs(c, limit=5, after="nope"), second)
    assert [type(result) for result in results] == [int, UnknownJobError, int]
    assert (first.runs, second.runs) == (1, 1)
    assert await database.run(_values) == [1, 2]


async def test_a_wrong_statement_is_no_outage(database: Database) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught:
        await database.run(lambda connection: connection.execute(text("SELECT * FROM no_such_table")))
    assert not isinstance(caught.value, RegistryUnavailableError)
    assert await database.run(_values) == []


# Two registries in each other's way


def _add(connection: Connection, name: str) -> None:
    connection.execute(
        text("UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE name = :n"), {"n": name}
    )


def _sums(connection: Connection) -> list[str]:
    return list(connection.execute(text("SELECT value FROM meta ORDER BY name")).scalars())


@pytest.fixture
def two_databases(postgres_uri: str) -> Iterator[tuple[Database, Database]]:
    with fresh_database(postgres_uri) as url:
        pair = (Database(url), Database(url))
        yield pair
        for database in pair:
            database.close()


async def test_of_two_that_wait_for_each_other_both_are_done_in_the_end(
    two_databases: tuple[Database, Database],
) -> None:
    one, other = two_databases
    await one.run(lambda c: c.execute(text("INSERT INTO meta VALUES ('a', '0'), ('b', '0')")) and None)
    both_hold_one = threading.Barrier(2)

    def crossed(first: str, second: str) -> Callable[[Connection], int]:
        runs = 0

        def operation(connection: Connection) -> int:
            nonlocal runs
            runs += 1
            _add(connection, first)
            if runs == 1:
                both_hold_one.wait(60)
            _add(connection, second)
            return runs

        return operation

    runs = await asyncio.gather(one.run(crossed("a", "b")), other.run(crossed("b", "a")))
    # The one that was rolled back may take its row again before the other wakes, and then they wait once more.
    assert sum(runs) > 2
    assert await one.run(_sums) == ["2", "2"]


async def test_what_could_not_be_serialized_is_run_again(two_databases: tuple[Database, Database]) -> None:
    one, other = two_databases
    await one.run(lambda c: c.execute(text("INSERT INTO meta VALUES ('a', '0')")) and None)
    both_have_read = threading.Barrier(2)

    def strict() -> Callable[[Connection], int]:
        runs = 0

        def operation(connection: Connection) -> int:
            nonlocal runs
            runs += 1
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            _sums(connection)
            if runs == 1:
                both_have_read.wait(60)
            _add(connection, "a")
            return runs

        return operation

    runs = await asyncio.gather(one.run(strict()), other.run(strict()))
    assert sorted(runs) == [1, 2]
    assert await one.run(_sums) == ["2"]


# Outages


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may kill."""
    with TemporaryDirectory(prefix="postgres") as folder, running_postgres(Path(folder)) as server:
        yield server
        server.start()


async def _submit(database: Database, job_id: str) -> str:
    accepted = await accept(database, Submission(job_id, "mochi-1", SPEC), 1.0)
    return accepted.job.id


async def test_a_killed_postgres_loses_nothing_that_was_accepted(own_postgres: Postgres) -> None:
    with fresh_database(own_postgres.uri) as url:
        database = Database(url)
        accepted: list[str] = []
        enough = asyncio.Event()

        async def submit_until_it_is_gone(caller: int) -> None:
            for n in range(100_000):
                accepted.append(await _submit(database, f"job{caller}-{n}"))
                if len(accepted) > 200:
                    enough.set()

        callers = [asyncio.create_task(submit_until_it_is_gone(n)) for n in range(8)]
        await enough.wait()
        await asyncio.to_thread(own_postgres.kill)
        ends = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(end) for end in ends] == [RegistryUnavailableError] * 8
        with pytest.raises(RegistryUnavailableError, match="does not work"):
            await database.run(meta_sql.touch, now=1.0)
        await asyncio.to_thread(own_postgres.start)
        await _submit(database, "afterwards")
        assert len(await database.run(deletion_sql.job_states, accepted)) == len(accepted) > 200
        database.close()


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB, not below pytest's own folder: another run of it could not clear one left by a crash."""
    with TemporaryDirectory(prefix="small_disk") as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28, error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small file system")
async def test_a_full_disk_refuses_writes_and_is_read_and_written_again_later() -> None:
    with small_disk() as disk:
        database = Database(f"sqlite:///{disk / 'jobs.db'}")
        await database.run(overview_sql.queued_ids)
        ballast = disk / "ballast"
        _fill(ballast)
        accepted: list[str] = []
        with pytest.raises(RegistryUnavailableError, match="full"):
            for n in range(100_000):  # what the files of the database had room for still goes
                accepted.append(await _submit(database, f"job{n}"))
        results = await together(
            database, _values, lambda c: meta_sql.touch(c, now=1.0), lambda c: len(overview_sql.queued_ids(c)), _large
        )
        assert (results[0], results[2]) == ([], len(accepted))
        assert isinstance(results[3], RegistryUnavailableError)
        ballast.unlink()
        await _submit(database, "afterwards")
        database.close()
        reopened = Database(f"sqlite:///{disk / 'jobs.db'}")
        stored = await reopened.run(deletion_sql.job_states, [*accepted, "afterwards"])
        assert len(stored) == len(accepted) + 1
        reopened.close()


def _large(connection: Connection) -> None:
    connection.execute(text("INSERT INTO meta (name, value) VALUES ('large', :v)"), {"v": "x" * 200_000})


async def test_a_database_that_is_full_is_said_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")

    def limit_pages(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    await database.run(limit_pages)
    with pytest.raises(RegistryUnavailableError, match="full"):
        await database.run(_large)
    assert await database.run(_values) == []
    database.close()


async def test_a_postgres_that_was_never_there_is_said_so() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(RegistryUnavailableError, match="(?i)connection"):
        await database.run(overview_sql.queued_ids)
    database.close()


async def test_a_database_that_is_away_at_first_is_used_once_it_is_there(tmp_path: Path) -> None:
    """A registry that starts again in the middle of an outage waits for its end."""
    path = tmp_path / "jobs.db"
    path.mkdir()
    database = Database(f"sqlite:///{path}")
    with pytest.raises(RegistryUnavailableError):
        await database.run(overview_sql.queued_ids)
    path.rmdir()
    assert await database.run(overview_sql.queued_ids) == []
    database.close()
