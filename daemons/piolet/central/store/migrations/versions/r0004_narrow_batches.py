"""Batches take less: no column that others tell, none that is filled up, and an index that keeps its values once."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from piolet.system import notify

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_AT_ONCE = 10_000
_MORE_S = 120.0
_SKEW_S = 5.0  # what was measured of a clock and is less is not used

_COLUMNS = ("id", "first", "received", "epoch", "records", "offset")
_old: Any = sa.table("batches_before", *map(sa.column, _COLUMNS))
_new: Any = sa.table("batches", *map(sa.column, _COLUMNS))


def upgrade() -> None:
    """Copy them: PostgreSQL changes the order of columns in no other way."""
    connection = op.get_bind()
    op.drop_index("ix_batches_epoch", "batches")
    op.rename_table("batches", "batches_before")
    if connection.dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_batches RENAME TO pk_batches_before")
    op.create_table(
        "batches",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.Float(precision=53), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("records", sa.LargeBinary(), nullable=False, server_default=sa.text("''")),
        sa.Column("offset", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    if connection.dialect.name == "postgresql":
        # They are deflated: trying to compress them again is in vain.
        op.execute("ALTER TABLE batches ALTER COLUMN records SET STORAGE EXTERNAL")
    _copy(connection)
    op.drop_table("batches_before")
    op.create_index("ix_batches_part", "batches", ["epoch", sa.text("(first / 256)")])


def _copy(connection: sa.Connection) -> None:
    offset = sa.case((sa.func.abs(_old.c.offset) > _SKEW_S, _old.c.offset))
    query = sa.select(*(_old.c[name] for name in _COLUMNS[:-1]), offset.label("offset"))
    query = query.where(_old.c.id > sa.bindparam("after"), _old.c.id <= sa.bindparam("upto")).order_by(_old.c.id)
    copy = sa.insert(_new).from_select(_COLUMNS, query)
    least: int = connection.scalar(sa.select(sa.func.min(_old.c.id))) or 1
    last: int = connection.scalar(sa.select(sa.func.max(_old.c.id))) or 0
    for after in range(least - 1, last, _AT_ONCE):
        connection.execute(copy, {"after": after, "upto": after + _AT_ONCE})
        notify.extend(_MORE_S)
