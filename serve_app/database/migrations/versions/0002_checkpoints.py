"""The newest checkpoint of a job, and how many denoising steps were run for it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("checkpoint_step", "steps_run"):
        op.add_column("jobs", sa.Column(name, sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    for name in ("checkpoint_step", "steps_run"):
        op.drop_column("jobs", name)
