"""Copies a store into another data base: SQLite to PostgreSQL, or back. All of it is there afterwards, or nothing."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from piolet.base.errors import EventError
from piolet.central.store.database import StoreError, alone, connect, reason
from piolet.central.store.schema import METADATA

_ROWS = 2000


def copy(source: str, target: str) -> dict[str, int]:
    """Copy the store at `source` into the empty one at `target`, which is made; return table -> rows.

    Raises EventError: a service writes to one of them, or there is something in the target already.
    """
    old, new = connect(source), connect(target, create=True)
    try:
        with alone(old), alone(new), old.connect() as reading, new.begin() as writing:
            for table in METADATA.sorted_tables:
                if writing.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
                    shown = new.url.render_as_string(hide_password=True)
                    raise EventError(f"there are records in {shown} already", "name one that is empty")
            return {table.name: _table(reading, writing, table) for table in METADATA.sorted_tables}
    except SQLAlchemyError as error:
        raise StoreError(f"the store cannot be copied: {reason(error)}") from None
    finally:
        old.dispose()
        new.dispose()


def _table(reading: sa.Connection, writing: sa.Connection, table: sa.Table) -> int:
    count = 0
    query = sa.select(table).order_by(*table.primary_key)
    with reading.execution_options(stream_results=True, yield_per=_ROWS).execute(query) as found:
        for rows in found.mappings().partitions():
            writing.execute(sa.insert(table), [dict(row) for row in rows])
            count += len(rows)
    if writing.dialect.name == "postgresql" and count and table.autoincrement_column is not None:
        own = table.autoincrement_column
        sequence = sa.func.pg_get_serial_sequence(table.name, own.name)
        writing.execute(sa.select(sa.func.setval(sequence, sa.select(sa.func.max(own)).scalar_subquery())))
    return count
