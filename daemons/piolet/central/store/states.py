"""Keeps what the rules know, as bytes of the service's own, in pieces: the whole of it is there, or the one before."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from piolet.central.store.database import StoreError, reason
from piolet.central.store.schema import batches, states
from piolet.central.store.writer import Writer

_PIECE = 1 << 20


def put(writer: Writer, about: str, body: bytes) -> None:
    """Keep a state in the place of the one before; `about` is read without the rest. Raises StoreError."""
    pieces = [about.encode("ascii"), *(body[at : at + _PIECE] for at in range(0, len(body), _PIECE))]
    try:
        with writer.engine.begin() as connection:
            connection.execute(sa.delete(states))
            connection.execute(sa.insert(states), [{"piece": i, "body": one} for i, one in enumerate(pieces)])
    except SQLAlchemyError as error:
        writer.forget()
        raise StoreError(f"the store does not take the rules' state: {reason(error)}") from None


def about(engine: sa.Engine) -> str | None:
    """Return what was said of the state that is kept; None: there is none. Raises StoreError."""
    found = _read(engine, sa.select(states.c.body).where(states.c.piece == 0))
    return found[0].decode("ascii", "replace") if found else None


def body(engine: sa.Engine) -> bytes:
    """Return the state that is kept. Raises StoreError."""
    return b"".join(_read(engine, sa.select(states.c.body).where(states.c.piece > 0).order_by(states.c.piece)))


def last_batch(engine: sa.Engine) -> int:
    """Return the number of the last batch that is in the data base; 0: there is none. Raises StoreError."""
    found = _read(engine, sa.select(sa.func.max(batches.c.id)))
    return int(found[0] or 0) if found else 0


def _read(engine: sa.Engine, query: sa.Select[Any]) -> list[Any]:
    try:
        with engine.connect() as connection:
            return list(connection.scalars(query))
    except SQLAlchemyError as error:
        raise StoreError(f"the store cannot be read: {reason(error)}") from None
