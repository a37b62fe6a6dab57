"""Tenants, tiers, counted costs, idempotency keys, retention; an index for each way to list jobs.

That a job was accepted is in its row: the entry of its history that said so too goes, and comes back on the way down.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LISTINGS = {
    "jobs_by_tenant": ["tenant", "created_at", "id"],
    "jobs_by_state": ["state", "created_at", "id"],
    "jobs_by_tenant_and_state": ["tenant", "state", "created_at", "id"],
}
PARTIAL = {
    "jobs_waiting": (["stage", "id"], "state = 'queued'"),
    "jobs_leased": (["id"], "lease IS NOT NULL"),
    "jobs_ended": (["state", "completed_at", "id"], "completed_at IS NOT NULL"),
    "jobs_with_work_files": (["completed_at", "id"], "completed_at IS NOT NULL AND has_work_files{is_true}"),
}


def upgrade() -> None:
    for column in _columns():
        op.add_column("jobs", column)
    op.drop_index("jobs_waiting", "jobs")
    op.drop_index("jobs_leased", "jobs")
    for name, columns in LISTINGS.items():
        op.create_index(name, "jobs", columns)
    is_true = " = 1" if op.get_bind().dialect.name == "sqlite" else ""
    for name, (columns, condition) in PARTIAL.items():
        where = sa.text(condition.format(is_true=is_true))
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
    _create_tables()
    op.execute("DELETE FROM job_moves WHERE state = 'queued' AND note = 'accepted'")


def downgrade() -> None:
    op.execute(
        "INSERT INTO job_moves (id, job_id, at, state, stage, attempt, note) "
        "SELECT -row_number() OVER (ORDER BY created_at, id), id, created_at, 'queued', 'encoding', 1, 'accepted' "
        "FROM jobs"
    )
    op.drop_table("meta")
    op.drop_table("idempotency_keys")
    for name in [*PARTIAL, *LISTINGS]:
        op.drop_index(name, "jobs")
    op.create_index("jobs_waiting", "jobs", ["state", "stage", "created_at", "id"])
    op.create_index("jobs_leased", "jobs", ["lease_expires_at"])
    for column in _columns():
        op.drop_column("jobs", column.name)


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("tenant", sa.String(64), nullable=False, server_default="default"),
        sa.Column("tier", sa.String(16), nullable=False, server_default="standard"),
        sa.Column("device_s", sa.Double, nullable=False, server_default="0"),
        sa.Column("parks", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),
        sa.Column("died_at", sa.Double),
        sa.Column("has_work_files", sa.Boolean, nullable=False, server_default=sa.true()),
    ]


def _create_tables() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("idempotency_keys_by_time", "idempotency_keys", ["created_at"])
    op.create_index("idempotency_keys_by_job", "idempotency_keys", ["job_id"])
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
