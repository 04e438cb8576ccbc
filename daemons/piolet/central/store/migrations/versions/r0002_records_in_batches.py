"""Records lie in their batches, and have no rows of their own (decision 132)."""

from collections import Counter
from typing import Any

import sqlalchemy as sa
from alembic import op

from piolet.central.store.bodies import pack_run, unpack
from piolet.central.store.rows import trimmed
from piolet.system import notify

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_AT_ONCE = 200
_MORE_S = 120.0

_COLUMNS = "epoch seq time kind source body boot severity subject uid job step run offset"
_batches: Any = sa.table("batches", *map(sa.column, ["id", "epoch", "first", "last", "records"]))
_events: Any = sa.table("events", *map(sa.column, _COLUMNS.split()))
_DATA: Any = sa.bindparam("data", type_=sa.LargeBinary())
_names: Any = sa.table("names", sa.column("id"), sa.column("name"))
_kept: Any = sa.table("kept", sa.column("name"), sa.column("value"))
_FILL = sa.update(_batches).where(_batches.c.id == sa.bindparam("of")).values(records=_DATA)


def upgrade() -> None:
    """Move them."""
    connection = op.get_bind()
    op.add_column("batches", sa.Column("records", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
    _fill(connection)
    op.drop_table("events")
    op.create_index("ix_batches_epoch", "batches", ["epoch", "first"], unique=True)
    if connection.dialect.name == "postgresql":
        op.alter_column("batches", "id", type_=sa.BigInteger())
        op.alter_column("conclusions", "batch", type_=sa.BigInteger())
        # They are deflated: trying to compress them again is in vain.
        op.execute("ALTER TABLE batches ALTER COLUMN records SET STORAGE EXTERNAL")


def _fill(connection: sa.Connection) -> None:
    joined = sa.and_(_events.c.epoch == _batches.c.epoch, _events.c.seq.between(_batches.c.first, _batches.c.last))
    query = (
        sa.select(_batches.c.id, _events)
        .join(_events, joined)
        .where(_batches.c.id > sa.bindparam("after"), _batches.c.id <= sa.bindparam("upto"))
        .order_by(_batches.c.id, _events.c.seq)
    )
    last: int = connection.scalar(sa.select(sa.func.max(_batches.c.id))) or 0
    at: int = (connection.scalar(sa.select(sa.func.min(_batches.c.id))) or 1) - 1
    told = {
        row.id: row.name.replace("spool.", "told ")
        for row in connection.execute(sa.select(_names).where(_names.c.name.in_(("spool.lost", "spool.dropped"))))
    }
    sums: Counter[str] = Counter()
    while at < last:
        runs: dict[int, list[Any]] = {}
        seqs: dict[int, int] = {}
        for row in connection.execute(query, {"after": at, "upto": at + _AT_ONCE}):
            body = unpack(row.body)
            if row.kind in told and type(body.get("records")) is int:
                sums[told[row.kind]] += max(0, body["records"])
            found = [
                row.seq - seqs.get(row.id, row.seq), row.time, row.kind, row.source, body or None, row.boot,
                row.severity, row.subject, row.uid, row.job, row.step, row.run, row.offset,
            ]  # fmt: skip
            runs.setdefault(row.id, []).append(trimmed(found))
            seqs[row.id] = row.seq
        if runs:
            connection.execute(_FILL, [{"of": batch, "data": pack_run(run)} for batch, run in runs.items()])
        notify.extend(_MORE_S)
        at += _AT_ONCE
    if sums:
        connection.execute(sa.insert(_kept), [{"name": name, "value": value} for name, value in sums.items()])
