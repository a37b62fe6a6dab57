"""Jobs of several kinds in one queue: each listing is of one kind, and so is each entry of the indexes for listings."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LISTINGS = {
    "jobs_by_time": ("created_at", "id"),
    "jobs_by_tenant": ("tenant", "created_at", "id"),
    "jobs_by_state": ("state", "created_at", "id"),
    "jobs_by_tenant_and_state": ("tenant", "state", "created_at", "id"),
}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(16), nullable=False, server_default="video"))
    for name, columns in LISTINGS.items():
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", ["kind", *columns])


def downgrade() -> None:
    for name, columns in LISTINGS.items():
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", list(columns))
    op.drop_column("jobs", "kind")
