"""Writes what was concluded, and what people say of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from piolet.base.errors import EventError
from piolet.central.conclusions import Conclusion, encode
from piolet.central.store.database import StoreError, reason
from piolet.central.store.schema import conclusions, kept, notes
from piolet.central.store.writer import Writer

NOTE, ACKNOWLEDGED = "note", "ack"
_TEXT_MOST = 2000


def conclude(writer: Writer, found: Sequence[tuple[Conclusion, int]], now: float) -> int:
    """Write conclusions, each with the number of the batch that completed it; return how many are new.

    One that is there is left as it is. Raises EventError: nothing is written.
    """
    new = 0
    with _told(writer, "conclusions") as connection:
        insert: Any = (postgresql if writer.engine.dialect.name == "postgresql" else sqlite).insert(conclusions)
        for one, batch in found:
            row = {
                "case": one.case, "state": one.state, "rule": one.rule, "subject": one.subject, "time": one.time,
                "node": writer.named.number(connection, one.node), "batch": batch, "written": now,
                "body": encode(one),
            }  # fmt: skip
            written = connection.scalar(insert.values(row).on_conflict_do_nothing().returning(conclusions.c.id))
            new += written is not None
    return new


@contextlib.contextmanager
def _told(writer: Writer, what: str) -> Iterator[sa.Connection]:
    """Give a transaction, and say what the data base complains of."""
    try:
        with writer.engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        writer.forget()
        raise StoreError(f"the store does not take {what}: {reason(error)}") from None


def say(writer: Writer, kind: str, text: str, uid: int | None, now: float, *, node: str = "", case: str = "") -> None:
    """Write down what somebody says of a node or of a case. Raises EventError: there is none such."""
    if not text.strip() or len(text) > _TEXT_MOST or not text.isprintable():
        raise EventError(f"a note is one line of 1 to {_TEXT_MOST} printable characters")
    with _told(writer, "notes") as connection:
        number = writer.named.find(connection, node) if node else None
        if node and number is None:
            raise EventError(f"nothing is known of a node {node}", "sinfo -N shows their names")
        if case:
            number = connection.scalar(sa.select(conclusions.c.node).where(conclusions.c.case == case))
            if number is None:
                raise EventError(f"there is no case {case}", "piolet central offenders lists them")
        row = {"time": now, "kind": kind, "node": number, "case": case or None, "uid": uid, "text": text}
        connection.execute(sa.insert(notes).values(row))


def cursor(writer: Writer, name: str) -> float | None:
    """Return up to where something stands, or None. Raises StoreError."""
    with _told(writer, "cursors") as connection:
        return connection.scalar(sa.select(kept.c.value).where(kept.c.name == name))


def set_cursor(writer: Writer, name: str, value: float) -> None:
    """Keep up to where something stands. Raises StoreError."""
    with _told(writer, "cursors") as connection:
        if not connection.execute(sa.update(kept).where(kept.c.name == name).values(value=value)).rowcount:
            connection.execute(sa.insert(kept).values(name=name, value=value))
