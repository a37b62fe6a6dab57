"""What a request said beside what its job is, and until when it may be completed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WITH_DEADLINE = sa.text("cancel_at IS NOT NULL AND completed_at IS NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("requested", sa.JSON))
    op.add_column("jobs", sa.Column("cancel_at", sa.Double))
    op.create_index(
        "jobs_with_deadline",
        "jobs",
        ["cancel_at", "id"],
        sqlite_where=WITH_DEADLINE,
        postgresql_where=WITH_DEADLINE,
    )


def downgrade() -> None:
    op.drop_index("jobs_with_deadline", "jobs")
    op.drop_column("jobs", "cancel_at")
    op.drop_column("jobs", "requested")
