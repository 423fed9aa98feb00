"""Changes expanded from others, and why a change is not written.

``changes`` gains ``origin_id`` and ``reason``. A slot may now change twice at one revision, once of them by
expansion, so the unique constraint becomes an index over the changes that were read from the source.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

# SQLite forgets the names of constraints, PostgreSQL gives its own.
NAMES = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
NAME_ON_SQLITE = "uq_changes_qid"


def upgrade() -> None:
    with op.batch_alter_table("facts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_facts_pid"), ["pid"], unique=False)

    (slot_at_revision,) = sa.inspect(op.get_bind()).get_unique_constraints("changes")
    with op.batch_alter_table("changes", schema=None, naming_convention=NAMES) as batch_op:
        batch_op.drop_constraint(slot_at_revision["name"] or NAME_ON_SQLITE, type_="unique")
        batch_op.add_column(sa.Column("origin_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("reason", sa.String(), server_default="", nullable=False))
        batch_op.create_foreign_key("fk_changes_origin", "changes", ["origin_id"], ["id"])
        batch_op.create_unique_constraint("uq_changes_origin", ["qid", "pid", "origin_id"])
        batch_op.create_index(
            "ux_changes_revision",
            ["qid", "pid", "revision"],
            unique=True,
            sqlite_where=sa.text("origin_id IS NULL"),
            postgresql_where=sa.text("origin_id IS NULL"),
        )

    # Only the rows that were there needed a default.
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.alter_column("reason", existing_type=sa.String(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.drop_index("ux_changes_revision")
        batch_op.drop_constraint("uq_changes_origin", type_="unique")
        batch_op.drop_constraint("fk_changes_origin", type_="foreignkey")
        batch_op.drop_column("reason")
        batch_op.drop_column("origin_id")
        batch_op.create_unique_constraint("changes_qid_pid_revision_key", ["qid", "pid", "revision"])

    with op.batch_alter_table("facts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_facts_pid"))
