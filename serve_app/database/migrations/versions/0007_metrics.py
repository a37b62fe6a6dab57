"""What all jobs come to, with those that are there already; what processes have counted.

Of the jobs from before, those that were deleted are not known any more, nor how long the others took by stage: the
sums begin with what is there, the histograms with nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_totals",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("tier", sa.String(16), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("code", sa.String(64), primary_key=True),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        sa.Column("device_s", sa.Double, nullable=False),
        sa.Column("steps_run", sa.BigInteger, nullable=False),
        sa.Column("steps_repeated", sa.BigInteger, nullable=False),
        sa.Column("parks", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO job_totals SELECT tenant, tier, 'accepted', '', MIN(created_at), COUNT(*), 0, 0, 0, 0 "
        "FROM jobs GROUP BY tenant, tier"
    )
    op.execute(
        "INSERT INTO job_totals SELECT tenant, tier, state, COALESCE(error_code, ''), MIN(completed_at), COUNT(*), "
        "SUM(device_s), SUM(steps_run), SUM(CASE WHEN steps_run > step THEN steps_run - step ELSE 0 END), SUM(parks) "
        "FROM jobs WHERE completed_at IS NOT NULL GROUP BY tenant, tier, state, COALESCE(error_code, '')"
    )
    op.create_table(
        "job_times",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("tier", sa.String(16), primary_key=True),
        sa.Column("bound", sa.String(24), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Double, nullable=False),
    )
    op.create_table(
        "metric_snapshots",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("process", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("counted", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("metric_snapshots")
    op.drop_table("job_times")
    op.drop_table("job_totals")
