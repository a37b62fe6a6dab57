"""The tables. Times are Unix seconds in double precision; `spec` and `seconds` are JSON objects.

Changed only together with a migration in `serve_app/migrations/versions`; a test holds the two together.
"""

from sqlalchemy import JSON, Column, Double, Index, Integer, MetaData, String, Table, Text

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
    Index("jobs_by_time", "created_at", "id"),
    Index("jobs_waiting", "state", "stage", "created_at", "id"),
    Index("jobs_leased", "lease_expires_at"),
)

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
