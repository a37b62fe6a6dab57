"""Migrations make the tables and indexes of the schema, and keep what is stored, up and down."""

import json
from collections.abc import Iterator
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text

from deployments.errors import RegistryUnavailableError
from deployments.messages import VideoSpec
from serve_app.database import schema
from serve_app.database.connection import Database
from serve_app.database.engine import migrate
from serve_app.database.jobs import cancellation as cancellation_sql
from serve_app.database.jobs import deletion as deletion_sql
from serve_app.database.jobs import moves as moves_sql
from serve_app.database.jobs.intake import insert_job
from serve_app.database.jobs.listing import list_jobs
from serve_app.database.jobs.rows import get_job
from serve_app.database.schema import metadata
from serve_app.jobs import JobState, Submission, Tier

SPEC = {
    "prompt": "a red circle",
    "negative_prompt": "",
    "width": 64,
    "height": 64,
    "num_frames": 25,
    "fps": 24,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "seed": 1,
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def migrate_to(engine: Engine, revision: str, direction: str = "upgrade") -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        getattr(alembic.command, direction)(config, revision)


def indexes(engine: Engine) -> dict[str, str]:
    """The definition of each index, in the database's words."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[engine.dialect.name]
    with engine.connect() as connection:
        found = {name: " ".join(definition.split()) for name, definition in connection.execute(text(query))}
    found.pop("alembic_version_pkc", None)
    return found


def store_old_jobs(engine: Engine) -> None:
    """Two jobs as revision 0002 wrote them: `w` waits, `c` was cancelled."""
    job = text(
        "INSERT INTO jobs (id, model, spec, state, stage, attempt, step, progress, created_at, completed_at, "
        "available_at, seconds) VALUES (:id, 'm', :spec, :state, 'encoding', 1, 0, 0, :at, :ended, :at, '{}')"
    )
    move = text(
        "INSERT INTO job_moves (job_id, at, state, stage, attempt, note) "
        "VALUES (:id, :at, :state, 'encoding', 1, :note)"
    )
    with engine.begin() as connection:
        for at, (job_id, state) in enumerate([("w", "queued"), ("c", "cancelled")]):
            ended = at if state == "cancelled" else None
            connection.execute(job, {"id": job_id, "spec": json.dumps(SPEC), "state": state, "at": at, "ended": ended})
            connection.execute(move, {"id": job_id, "at": at, "state": "queued", "note": "accepted"})
        connection.execute(move, {"id": "c", "at": 5, "state": "cancelled", "note": "cancelled"})


def history(engine: Engine, job_id: str) -> list[tuple[float, str]]:
    query = text("SELECT at, note FROM job_moves WHERE job_id = :id ORDER BY id")
    with engine.connect() as connection:
        return [(at, note) for at, note in connection.execute(query, {"id": job_id})]


def test_migrations_make_the_tables_of_the_schema(engine: Engine) -> None:
    migrate(engine)
    migrate(engine)  # a second time changes nothing
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrations_make_the_indexes_of_the_schema(engine: Engine) -> None:
    migrate(engine)
    migrated = indexes(engine)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    assert migrated == indexes(engine)
    assert len(migrated) >= 11


async def test_a_schema_of_a_newer_version_is_told(engine: Engine, database_url: str) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database = Database(database_url)
    with pytest.raises(RegistryUnavailableError, match=r"schema is none that this version knows \(.*9999.*\); start"):
        await database.run(get_job, "a")
    database.close()


async def test_stored_jobs_are_kept_on_the_way_up(engine: Engine, database_url: str) -> None:
    migrate_to(engine, "0002")
    store_old_jobs(engine)
    database = Database(database_url)
    waiting = await database.run(get_job, "w")
    assert waiting is not None
    assert (waiting.spec, waiting.tenant, waiting.tier) == (VideoSpec(**SPEC), "default", Tier.STANDARD)  # type: ignore[arg-type]
    assert (waiting.device_s, waiting.parks, waiting.deaths, waiting.died_at) == (0.0, 0, 0, None)
    moves = await database.run(moves_sql.history, "c")
    assert [(move.at, move.state, move.note) for move in moves] == [
        (1.0, JobState.QUEUED, "accepted"),
        (5.0, JobState.CANCELLED, "cancelled"),
    ]
    assert [job.id for job in (await database.run(list_jobs, limit=5)).jobs] == ["c", "w"]
    assert await database.run(deletion_sql.jobs_with_work_files, limit=5) == ["c"]
    database.close()


async def test_stored_jobs_are_kept_on_the_way_down_and_up_again(engine: Engine, database_url: str) -> None:
    migrate_to(engine, "0002")
    before = indexes(engine)
    store_old_jobs(engine)
    database = Database(database_url)
    new = Submission("new", "m", VideoSpec(**SPEC), "acme", idempotency_key="k", fingerprint="f")  # type: ignore[arg-type]
    await database.run(insert_job, new, now=7.0, keep_keys_s=1.0)
    await database.run(cancellation_sql.cancel, "new", now=8.0)
    database.close()
    migrate_to(engine, "0002", "downgrade")
    assert indexes(engine) == before
    assert history(engine, "c") == [(1.0, "accepted"), (5.0, "cancelled")]
    assert history(engine, "new") == [(7.0, "accepted"), (8.0, "cancelled")]
    database = Database(database_url)
    assert len(await database.run(moves_sql.history, "new")) == 2
    database.close()
