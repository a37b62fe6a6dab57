"""The file of the SQLite database: private, whole, and watched."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from deployments.errors import RegistryUnavailableError
from serve_app.database.connection import Database
from serve_app.database.meta import touch
from serve_app.database.sqlite_file import check_undamaged, fold_wal
from serve_app.errors import StartupError


def insert_moves(connection: Connection, count: int) -> None:
    row = "INSERT INTO job_moves (job_id, at, state, stage, attempt, note) VALUES ('j', 1, '', '', 1, :note)"
    connection.execute(text(row), [{"note": "x" * 500}] * count)


def count_moves(connection: Connection) -> int:
    return len(connection.execute(text("SELECT * FROM job_moves")).all())


async def fill(path: Path, count: int) -> None:
    database = Database(f"sqlite:///{path}")
    await database.run(insert_moves, count)
    database.close()


def damage_a_page(path: Path) -> None:
    """Overwrite a page of the table of moves."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 5 * 4096)
        file.write(b"\xff" * 4096)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
async def test_a_new_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "jobs.db"
    database = Database(f"sqlite:///{path}")
    await database.run(touch, now=1.0)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    database.close()
    assert modes == dict.fromkeys(("jobs.db", "jobs.db-wal", "jobs.db-shm"), "0o600")
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_after_the_fold_the_one_file_is_all(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    database = Database(f"sqlite:///{path}")
    await database.run(insert_moves, 1000)
    fold_wal(path)
    shutil.copy(path, tmp_path / "copy.db")
    database.close()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM job_moves").fetchone() == (1000,)
    fold_wal(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


async def test_a_good_database_passes_the_check(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    check_undamaged(path)
    await fill(path, 1000)
    check_undamaged(path)
    check_undamaged(path, check_s=0)


@pytest.mark.parametrize("damage", ["page", "text", "cut"])
async def test_a_damaged_database_is_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "jobs.db"
    await fill(path, 1000)
    if damage == "page":
        damage_a_page(path)
    elif damage == "text":
        path.write_text("something else\n" * 1000)
    else:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StartupError, match=r"jobs.db is damaged \(.*backup") as caught:
        check_undamaged(path)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_database_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StartupError, match="jobs.db is no file that this user can read and write"):
        check_undamaged(tmp_path / "jobs.db")


async def test_a_read_that_meets_a_damaged_page_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await fill(path, 1000)
    damage_a_page(path)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(RegistryUnavailableError, match="the job database is damaged; .*: ."):
        await database.run(count_moves)
    database.close()


@pytest.mark.parametrize("name", ["jobs.db", "jobs.db-wal"])
async def test_a_database_that_is_taken_away_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    await database.run(insert_moves, 1)
    path.rename(tmp_path / "away")
    with pytest.raises(RegistryUnavailableError, match=f"{name} was deleted or replaced while the server ran"):
        await database.run(touch, now=1.0)
    shutil.copy(tmp_path / "away", path)
    with pytest.raises(RegistryUnavailableError, match="deleted or replaced"):
        await database.run(count_moves)
    (tmp_path / "away").rename(path)
    assert await database.run(count_moves) == 1
    database.close()


async def test_nothing_is_told_written_that_went_into_a_deleted_file(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    await database.run(touch, now=1.0)

    def write_and_lose(connection: Connection) -> None:
        insert_moves(connection, 1)
        (tmp_path / "jobs.db").unlink()

    with pytest.raises(RegistryUnavailableError, match="deleted or replaced"):
        await database.run(write_and_lose)
    database.close()
