"""Tenants, their keys and what they used; webhooks; deleted videos; where a video comes from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = ("tenants", "api_keys", "usage", "webhook_deliveries", "deleted_videos")


def upgrade() -> None:
    for column in _columns():
        op.add_column("jobs", column)
    # The entry that a job was accepted is in its row alone.
    op.execute("UPDATE jobs SET moves = 1 + (SELECT count(*) FROM job_moves WHERE job_moves.job_id = jobs.id)")
    _create_access()
    _create_deliveries()
    _create_deleted()


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    for column in _columns():
        op.drop_column("jobs", column.name)


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("moves", sa.Integer, nullable=False, server_default="1"),
        sa.Column("origin_id", sa.String(64)),
        sa.Column("origin_relation", sa.String(16)),
        sa.Column("webhook_url", sa.Text),
    ]


def _create_access() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("max_tier", sa.String(16), nullable=False),
        sa.Column("weight", sa.Double),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("videos_per_minute", sa.Integer),
        sa.Column("max_queued", sa.Integer),
        sa.Column("gpu_seconds_per_day", sa.Double),
        sa.Column("webhook_secret", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_index("api_keys_by_tenant", "api_keys", ["tenant", "created_at"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
        sa.Column("videos", sa.Integer, nullable=False),
    )


def _create_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.Double),
        sa.Column("delivered_at", sa.Double),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
    )
    op.create_index("webhook_deliveries_by_job", "webhook_deliveries", ["job_id"])
    due = sa.text("next_at IS NOT NULL")
    columns = ["next_at", "id"]
    op.create_index("webhook_deliveries_due", "webhook_deliveries", columns, sqlite_where=due, postgresql_where=due)


def _create_deleted() -> None:
    op.create_table(
        "deleted_videos",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("deleted_at", sa.Double, nullable=False),
        sa.Column("files_gone_at", sa.Double),
    )
    op.create_index("deleted_videos_by_time", "deleted_videos", ["deleted_at"])
    kept = sa.text("files_gone_at IS NULL")
    columns = ["deleted_at", "id"]
    op.create_index("deleted_videos_with_files", "deleted_videos", columns, sqlite_where=kept, postgresql_where=kept)
