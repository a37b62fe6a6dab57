"""The tables of the database. Times are Unix seconds in double precision.

This file is changed only together with a migration in `serve_app/database/migrations/versions`; a
test compares the two. Each index costs every new job a write, so an index that only some states
need is partial. Its condition stands here, because a database uses a partial index only for a query
that has the same condition.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
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
    Column("kind", String(16), nullable=False, server_default="video"),  # a JobKind
    Column("model", String(128), nullable=False),
    Column("spec", JSON, nullable=False),  # a VideoSpec or a ProteinSpec
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False),  # the stage that the job runs or waits for
    Column("attempt", Integer, nullable=False),  # 1 and up; one more whenever a stage was lost or failed
    Column("step", Integer, nullable=False),  # steps done
    Column("checkpoint_step", Integer, nullable=False, server_default="0"),  # where a new attempt begins
    Column("steps_run", Integer, nullable=False, server_default="0"),  # in all attempts
    Column("progress", Double, nullable=False),  # 0 to 1
    Column("tenant", String(64), nullable=False, server_default="default"),
    Column("tier", String(16), nullable=False, server_default="standard"),
    Column("device_s", Double, nullable=False, server_default="0"),  # in all attempts
    Column("parks", Integer, nullable=False, server_default="0"),  # how often it made room for another job
    Column("remakes", Integer, nullable=False, server_default="0"),  # how often an output had to be made again
    Column("deaths", Integer, nullable=False, server_default="0"),  # replicas that died in a row at `died_at`
    Column("died_at", Double),  # a progress
    Column("has_work_files", Boolean, nullable=False, server_default=true()),  # under jobs/<id>/ in storage
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("available_at", Double, nullable=False),  # waits at least until then
    Column("lease", String(64)),  # token of the replica that runs it
    Column("lease_owner", String(128)),  # the registry that gave the lease
    Column("lease_expires_at", Double),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("seconds", JSON, nullable=False),  # wall time by "<stage>.<part>"
    Column("moves", Integer, nullable=False, server_default="1"),  # length of its history
    Column("origin_id", String(64)),  # the job that it was made from
    Column("origin_relation", String(16)),
    Column("webhook_url", Text),
    Column("requested", JSON(none_as_null=True)),  # a Requested; null: AS_MADE
    Column("cancel_at", Double),  # not completed by then, it is cancelled
    Column("traceparent", String(55)),  # of its request; null: its trace is its own, and unkept
    Index("jobs_by_time", "kind", "created_at", "id"),
    Index("jobs_by_tenant", "kind", "tenant", "created_at", "id"),
    Index("jobs_by_state", "kind", "state", "created_at", "id"),
    Index("jobs_by_tenant_and_state", "kind", "tenant", "state", "created_at", "id"),
)

WAITING = jobs.c.state == literal_column("'queued'")
LEASED = jobs.c.lease.is_not(None)
ENDED = jobs.c.completed_at.is_not(None)
ENDED_WITH_FILES = and_(ENDED, jobs.c.has_work_files)
WITH_DEADLINE = and_(jobs.c.cancel_at.is_not(None), jobs.c.completed_at.is_(None))

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

Index(
    "jobs_with_deadline",
    jobs.c.cancel_at,
    jobs.c.id,
    sqlite_where=WITH_DEADLINE,
    postgresql_where=WITH_DEADLINE,
)

# The histories of jobs. The first entry, that the job was accepted, is in its row of `jobs` and
# nowhere else.
job_moves = Table(
    "job_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("note", Text, nullable=False),  # why, for people
    Index("job_moves_by_job", "job_id", "id"),
)

# The keys of clients for their own requests.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),  # of what is asked for
    Column("sent_fingerprint", String(64)),  # of what was sent; null in rows from before there was one
    Column("job_id", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Index("idempotency_keys_by_time", "created_at"),
    Index("idempotency_keys_by_job", "job_id"),
)

# Facts about the database itself; see `serve_app.database.meta` and `serve_app.database.access`.
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
    Column("weight", Double),  # null here and below: the default of the settings
    Column("requests_per_minute", Integer),
    Column("videos_per_minute", Integer),
    Column("max_queued", Integer),
    Column("gpu_seconds_per_day", Double),
    Column("webhook_secret", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of the key in hex; the key is nowhere
    Column("hint", String(16), nullable=False),  # the first characters of the key
    Column("label", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Index("api_keys_by_tenant", "tenant", "created_at"),
)

# What the jobs that ended on a day cost.
usage = Table(
    "usage",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("day", Integer, primary_key=True),  # days since 1970-01-01, UTC
    Column("gpu_seconds", Double, nullable=False),
    Column("videos", Integer, nullable=False),
)

# What all jobs ever accepted come to, deleted ones too; see `serve_app.database.jobs.totals`.
job_totals = Table(
    "job_totals",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("tier", String(16), primary_key=True),
    Column("outcome", String(16), primary_key=True),  # accepted, retried, or the state in which they ended
    Column("code", String(64), primary_key=True),  # of the error; empty if there was none
    Column("since", Double, nullable=False),  # when the first one was counted
    Column("jobs", BigInteger, nullable=False),
    Column("device_s", Double, nullable=False),
    Column("steps_run", BigInteger, nullable=False),
    Column("steps_repeated", BigInteger, nullable=False),
    Column("parks", BigInteger, nullable=False),
)

# How long ended jobs took, as histograms.
job_times = Table(
    "job_times",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("tier", String(16), primary_key=True),
    Column("bound", String(24), primary_key=True),  # the upper one of the bucket, seconds, as Python writes a float
    Column("count", BigInteger, nullable=False),
    Column("total", Double, nullable=False),  # seconds
)

# What the processes of each cluster have counted in memory, so that it stays when they end.
metric_snapshots = Table(
    "metric_snapshots",
    metadata,
    Column("owner", String(128), primary_key=True),  # the cluster
    Column("process", String(64), primary_key=True),  # empty: all that ended long ago
    Column("role", String(32), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("counted", Text, nullable=False),  # JSON
    Column("at", Double, nullable=False),  # when it was written
)

# One row for each event and URL, written in the transaction that ends the job.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("type", String(32), nullable=False),  # of the event
    Column("created_at", Double, nullable=False),  # when the job ended
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", Double),  # of the next try; null once it was taken or given up
    Column("delivered_at", Double),
    Column("status", Integer),  # of the last answer
    Column("error", Text),
    Column("traceparent", String(55)),  # of the job
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

# Tombstones of jobs that their clients deleted; see `serve_app.database.jobs.deletion`.
deleted_videos = Table(
    "deleted_videos",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("deleted_at", Double, nullable=False),
    Column("files_gone_at", Double),  # when the files were last deleted
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
