"""Publications are tried again at their time; one is pending per target."""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("publications", schema=None) as batch_op:
        batch_op.add_column(sa.Column("next_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE publications SET next_at = created_at")
    # What an earlier release had overtaken it called failed.
    op.execute("UPDATE publications SET state = 'superseded' WHERE state = 'failed'")
    with op.batch_alter_table("publications", schema=None) as batch_op:
        batch_op.alter_column("next_at", existing_type=sa.DateTime(timezone=True), nullable=False)
    op.execute(
        "UPDATE publications SET state = 'superseded' WHERE state = 'pending' AND id NOT IN "
        "(SELECT newest FROM (SELECT max(id) AS newest FROM publications WHERE state = 'pending' GROUP BY target) AS n)"
    )
    op.create_index(
        "ux_publications_pending",
        "publications",
        ["target"],
        unique=True,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.execute("UPDATE publications SET state = 'failed' WHERE state = 'superseded'")
    op.drop_index("ux_publications_pending", "publications")
    with op.batch_alter_table("publications", schema=None) as batch_op:
        batch_op.drop_column("next_at")
