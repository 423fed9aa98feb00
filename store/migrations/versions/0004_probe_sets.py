"""Probe sets, the bounds behind each verdict, and how the other versions did on a probe."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "probe_sets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    with op.batch_alter_table("gate_measures", schema=None) as batch_op:
        batch_op.add_column(sa.Column("loss", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("low", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("high", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("needed", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("probe_set_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key("fk_gate_measures_probe_set", "probe_sets", ["probe_set_id"], ["id"])
    with op.batch_alter_table("probe_results", schema=None) as batch_op:
        batch_op.add_column(sa.Column("promoted_correct", sa.Boolean(), nullable=True))
        batch_op.add_column(sa.Column("base_correct", sa.Boolean(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("probe_results", schema=None) as batch_op:
        batch_op.drop_column("base_correct")
        batch_op.drop_column("promoted_correct")
    with op.batch_alter_table("gate_measures", schema=None) as batch_op:
        batch_op.drop_constraint("fk_gate_measures_probe_set", type_="foreignkey")
        for column in ("probe_set_id", "needed", "high", "low", "loss"):
            batch_op.drop_column(column)
    op.drop_table("probe_sets")
