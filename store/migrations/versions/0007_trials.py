"""Trials of a batch, the strength of an edit, a probe's rival, and when quarantined changes are tried again."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cycle_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("withheld", sa.JSON(), nullable=False),
        sa.Column("raised", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"]),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("version_id"),
    )
    op.create_index("ix_trials_cycle_id", "trials", ["cycle_id"])
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.add_column(sa.Column("strength", sa.Float(), nullable=False, server_default="1.0"))
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.alter_column("strength", existing_type=sa.Float(), existing_nullable=False, server_default=None)
    with op.batch_alter_table("probe_results", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rival", sa.String(), nullable=True))
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.add_column(sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_column("retry_at")
    with op.batch_alter_table("probe_results", schema=None) as batch_op:
        batch_op.drop_column("rival")
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.drop_column("strength")
    op.drop_index("ix_trials_cycle_id", table_name="trials")
    op.drop_table("trials")
