"""Writes what was concluded, and what people say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from piolet.base.errors import EventError
from piolet.central.conclusions import Conclusion, encode
from piolet.central.store.database import reason
from piolet.central.store.schema import conclusions, notes
from piolet.central.store.writer import Writer

NOTE, ACKNOWLEDGED = "note", "ack"
_TEXT_MOST = 2000


def conclude(writer: Writer, found: Sequence[tuple[Conclusion, int]], now: float) -> int:
    """Write conclusions, each with the number of the batch that completed it; return how many are new.

    One that is there is left as it is. Raises EventError: nothing is written.
    """
    new = 0
    try:
        with writer.engine.begin() as connection:
            insert: Any = (postgresql if writer.engine.dialect.name == "postgresql" else sqlite).insert(conclusions)
            for one, batch in found:
                row = {
                    "case": one.case, "state": one.state, "rule": one.rule, "subject": one.subject, "time": one.time,
                    "node": writer.named.number(connection, one.node), "batch": batch, "written": now,
                    "body": encode(one),
                }  # fmt: skip
                new += connection.execute(insert.values(row).on_conflict_do_nothing()).rowcount
    except SQLAlchemyError as error:
        writer.forget()
        raise EventError(f"the store does not take conclusions: {reason(error)}") from None
    return new


def say(writer: Writer, kind: str, text: str, uid: int | None, now: float, *, node: str = "", case: str = "") -> None:
    """Write down what somebody says of a node or of a case. Raises EventError: there is none such."""
    if not text.strip() or len(text) > _TEXT_MOST or not text.isprintable():
        raise EventError(f"a note is one line of 1 to {_TEXT_MOST} printable characters")
    try:
        with writer.engine.begin() as connection:
            number = writer.named.find(connection, node) if node else None
            if node and number is None:
                raise EventError(f"nothing is known of a node {node}")
            if case:
                query = sa.select(conclusions.c.node).where(conclusions.c.case == case)
                number = connection.scalar(query)
                if number is None:
                    raise EventError(f"there is no case {case}", "piolet central offenders lists them")
            row = {"time": now, "kind": kind, "node": number, "case": case or None, "uid": uid, "text": text}
            connection.execute(sa.insert(notes).values(row))
    except SQLAlchemyError as error:
        writer.forget()
        raise EventError(f"the store does not take notes: {reason(error)}") from None
