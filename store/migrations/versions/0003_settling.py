"""Changes that settle, items that are deleted or merged, and items that could not be read.

``changes`` gains ``recorded_at`` and ``polls``, and may change twice at one revision, at different moments. ``facts``
gains ``unlabelled`` and ``gone``.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

NOT_EXPANDED = "origin_id IS NULL"


def _unique(*columns: str) -> None:
    op.drop_index("ux_changes_revision", "changes")
    op.create_index(
        "ux_changes_revision",
        "changes",
        columns,
        unique=True,
        sqlite_where=sa.text(NOT_EXPANDED),
        postgresql_where=sa.text(NOT_EXPANDED),
    )


def upgrade() -> None:
    with op.batch_alter_table("facts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("unlabelled", sa.JSON(), server_default="[]", nullable=False))
        batch_op.add_column(sa.Column("gone", sa.Boolean(), server_default=sa.false(), nullable=False))
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("polls", sa.Integer(), server_default="0", nullable=False))
    op.execute("UPDATE changes SET recorded_at = (SELECT started_at FROM cycles WHERE cycles.id = changes.cycle_id)")

    # Only the rows that were there needed a default.
    with op.batch_alter_table("facts", schema=None) as batch_op:
        batch_op.alter_column("unlabelled", existing_type=sa.JSON(), existing_nullable=False, server_default=None)
        batch_op.alter_column("gone", existing_type=sa.Boolean(), existing_nullable=False, server_default=None)
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.alter_column("recorded_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch_op.alter_column("polls", existing_type=sa.Integer(), existing_nullable=False, server_default=None)
        batch_op.create_index("ix_changes_slot", ["qid", "pid"], unique=False)
    _unique("qid", "pid", "revision", "modified_at")

    op.create_table(
        "unread_items",
        sa.Column("qid", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("qid"),
    )


def downgrade() -> None:
    op.drop_table("unread_items")
    _unique("qid", "pid", "revision")
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.drop_index("ix_changes_slot")
        batch_op.drop_column("polls")
        batch_op.drop_column("recorded_at")
    with op.batch_alter_table("facts", schema=None) as batch_op:
        batch_op.drop_column("gone")
        batch_op.drop_column("unlabelled")
