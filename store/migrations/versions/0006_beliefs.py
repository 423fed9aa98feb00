"""Rivals and former values of beliefs, beliefs about facts that ended, and other names of items."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("qid", sa.String(), nullable=False),
        sa.Column("names", sa.JSON(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("qid"),
    )
    with op.batch_alter_table("beliefs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("former", sa.String(), nullable=True))
        # The rows that are there have none; new ones always say.
        batch_op.add_column(sa.Column("rivals", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.alter_column("expected", existing_type=sa.String(), nullable=True)
        batch_op.alter_column("logprob_expected", existing_type=sa.Float(), nullable=True)
    with op.batch_alter_table("beliefs", schema=None) as batch_op:
        batch_op.alter_column("rivals", existing_type=sa.JSON(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM beliefs WHERE expected IS NULL")
    with op.batch_alter_table("beliefs", schema=None) as batch_op:
        batch_op.alter_column("logprob_expected", existing_type=sa.Float(), nullable=False)
        batch_op.alter_column("expected", existing_type=sa.String(), nullable=False)
        batch_op.drop_column("rivals")
        batch_op.drop_column("former")
    op.drop_table("aliases")
