"""The tables. Times are Unix seconds in double precision; `spec` and `seconds` are JSON objects.

Changed only together with a migration in `serve_app/migrations/versions`; a test holds the two together. Each index
costs every new job a write, so those that only some states need are partial: their conditions stand here, because a
database takes such an index only for a query that says the same words.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    literal_column,
    true,
)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("checkpoint_step", Integer, nullable=False, server_default="0"),
    Column("steps_run", Integer, nullable=False, server_default="0"),
    Column("progress", Double, nullable=False),
    Column("tenant", String(64), nullable=False, server_default="default"),
    Column("tier", String(16), nullable=False, server_default="standard"),
    Column("device_s", Double, nullable=False, server_default="0"),
    Column("parks", Integer, nullable=False, server_default="0"),
    Column("deaths", Integer, nullable=False, server_default="0"),
    Column("died_at", Double),
    Column("has_work_files", Boolean, nullable=False, server_default=true()),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("available_at", Double, nullable=False),
    Column("lease", String(64)),
    Column("lease_owner", String(128)),
    Column("lease_expires_at", Double),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("seconds", JSON, nullable=False),
    Column("moves", Integer, nullable=False, server_default="1"),
    Column("origin_id", String(64)),
    Column("origin_relation", String(16)),
    Column("webhook_url", Text),
    Index("jobs_by_time", "created_at", "id"),
    Index("jobs_by_tenant", "tenant", "created_at", "id"),
    Index("jobs_by_state", "state", "created_at", "id"),
    Index("jobs_by_tenant_and_state", "tenant", "state", "created_at", "id"),
)

WAITING = jobs.c.state == literal_column("'queued'")
LEASED = jobs.c.lease.is_not(None)
ENDED = jobs.c.completed_at.is_not(None)
ENDED_WITH_FILES = and_(ENDED, jobs.c.has_work_files)

Index("jobs_waiting", jobs.c.stage, jobs.c.id, sqlite_where=WAITING, postgresql_where=WAITING)
Index("jobs_leased", jobs.c.id, sqlite_where=LEASED, postgresql_where=LEASED)
Index("jobs_ended", jobs.c.state, jobs.c.completed_at, jobs.c.id, sqlite_where=ENDED, postgresql_where=ENDED)
Index(
    "jobs_with_work_files",
    jobs.c.completed_at,
    jobs.c.id,
    sqlite_where=ENDED_WITH_FILES,
    postgresql_where=ENDED_WITH_FILES,
)

# The first entry of a job's history, that it was accepted, is in its row of `jobs` and nowhere else.
job_moves = Table(
    "job_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Index("job_moves_by_job", "job_id", "id"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Index("idempotency_keys_by_time", "created_at"),
    Index("idempotency_keys_by_job", "job_id"),
)

meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("max_tier", String(16), nullable=False),
    Column("weight", Double),
    Column("requests_per_minute", Integer),
    Column("videos_per_minute", Integer),
    Column("max_queued", Integer),
    Column("gpu_seconds_per_day", Double),
    Column("webhook_secret", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
)

# `hash`: SHA-256 of the key in hexadecimal digits; the key itself is nowhere.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Index("api_keys_by_tenant", "tenant", "created_at"),
)

# What the jobs that ended on a day (days since 1970-01-01, UTC) cost.
usage = Table(
    "usage",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("gpu_seconds", Double, nullable=False),
    Column("videos", Integer, nullable=False),
)

# Written in the transaction that ends the job. `next_at` is null once it was taken or given up.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("type", String(32), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", Double),
    Column("delivered_at", Double),
    Column("status", Integer),
    Column("error", Text),
    Index("webhook_deliveries_by_job", "job_id"),
)
UNDELIVERED = webhook_deliveries.c.next_at.is_not(None)
Index(
    "webhook_deliveries_due",
    webhook_deliveries.c.next_at,
    webhook_deliveries.c.id,
    sqlite_where=UNDELIVERED,
    postgresql_where=UNDELIVERED,
)

# Jobs that their clients deleted: so that a repeated request finds out, and until their files are gone.
deleted_videos = Table(
    "deleted_videos",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("deleted_at", Double, nullable=False),
    Column("files_gone_at", Double),
    Index("deleted_videos_by_time", "deleted_at"),
)
DELETED_WITH_FILES = deleted_videos.c.files_gone_at.is_(None)
Index(
    "deleted_videos_with_files",
    deleted_videos.c.deleted_at,
    deleted_videos.c.id,
    sqlite_where=DELETED_WITH_FILES,
    postgresql_where=DELETED_WITH_FILES,
)
