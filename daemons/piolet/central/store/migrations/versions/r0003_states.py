"""What the rules know, so that a restart need not judge everything again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; with nothing in it, all is judged once more."""
    op.create_table(
        "states",
        sa.Column("piece", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("piece", name=op.f("pk_states")),
    )
