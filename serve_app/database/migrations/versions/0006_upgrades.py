"""How often a job went back to a stage whose output could not be used; the fingerprint of what a client sent."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("remakes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("idempotency_keys", sa.Column("sent_fingerprint", sa.String(64)))


def downgrade() -> None:
    op.drop_column("idempotency_keys", "sent_fingerprint")
    op.drop_column("jobs", "remakes")
