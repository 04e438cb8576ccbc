"""The tables. `migrations/` makes them; a test holds the two together.

Numbers stand for names (`names`) wherever one is said in every record. Records lie in `batches`: what is of one node is
found by its epochs, and a record by the batch whose numbers it is among. Times are seconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

METADATA = MetaData(
    naming_convention={
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

names = Table(
    "names",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String(256), nullable=False, unique=True),
)
"""Nodes, kinds, steps, subjects and boot ids."""

epochs = Table(
    "epochs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("node", Integer, ForeignKey("names.id"), nullable=False),
    Column("epoch", String(16), nullable=False),
    Column("have", BigInteger, nullable=False),
    Column("first", Float(53), nullable=False),  # when the first and the last batch came
    Column("last", Float(53), nullable=False),
    Column("own", SmallInteger, nullable=False),
    UniqueConstraint("node", "epoch"),
)
"""Streams of records (decision 104), and up to which number each is here.

Of the service's own ones (`own`), whose numbers have gaps and no order, `have` is how many records are here.
"""

# SQLite's row numbers are of that type alone.
_LONG = BigInteger().with_variant(Integer, "sqlite")

batches = Table(
    "batches",
    METADATA,
    Column("id", _LONG, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),
    Column("received", Float(53), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("records", LargeBinary, nullable=False, server_default=text("''")),
    Column("offset", Float(53)),  # how far the node's clock was ahead of the service's when it sent; none: seconds
    Index("ix_batches_part", "epoch", text("(first / 256)")),
)
"""What of one stream came together, by the order in which it came: that order is the rules' one.

`records` are those from `first` on, as `piolet.central.store.rows` makes lists of them, deflated (decision 132). The
columns stand in the order in which PostgreSQL fills up none of them, and the index has one value for many rows, which
it then keeps once (decision 163).
"""

PART = 256
"""Numbers of a stream that are of one part: whatever begins at one of them has one place in the index."""
part: ColumnElement[int] = literal_column("batches.first / 256", BigInteger())
"""The part of a batch's first number."""

gaps = Table(
    "gaps",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False, index=True),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("time", Float(53), nullable=False),
    Column("why", Text, nullable=False),
)
"""Records that are not here, and never will be: lost on their node, or refused."""

conclusions = Table(
    "conclusions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("case", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("rule", String(100), nullable=False),
    Column("node", Integer, nullable=False),
    Column("subject", String(256), nullable=False),
    Column("time", Float(53), nullable=False),
    Column("batch", _LONG, nullable=False),  # of the record that completed it
    Column("written", Float(53), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("case", "state"),
    Index("ix_conclusions_node", "node", "time"),
)
"""What rules concluded, each once: a case is a row that opens it, and one that closes it. `body` is its line."""

notes = Table(
    "notes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float(53), nullable=False),
    Column("kind", String(16), nullable=False),  # note, ack, repair
    Column("node", Integer, index=True),
    Column("case", String(64), index=True),
    Column("uid", BigInteger),
    Column("text", Text, nullable=False),
)
"""What people said of a node or a case."""

kept = Table(
    "kept",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", Float(53), nullable=False),
)
"""What the service remembers for itself: up to where it has asked others, and sums."""

TOLD = {"spool.lost": "told lost", "spool.dropped": "told dropped"}
"""Kinds in which nodes say of how many records there will be nothing -> where their sum is in `kept`."""

states = Table(
    "states",
    METADATA,
    Column("piece", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
"""What the rules know after some batch (decision 131), in pieces; piece 0 says what it is, in JSON."""
