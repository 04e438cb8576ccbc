"""Opens the store: SQLite in a file, or PostgreSQL; makes its tables, brings those of older releases up to date."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from piolet.base.errors import EventError
from piolet.central.store.schema import kept
from piolet.system.accounts import own_name


class StoreError(EventError):
    """The data base does not do its work now; later it may."""


_LOCK = 0x70696F6C  # of PostgreSQL's advisory locks, in each data base
_BUSY_MS = 10_000


def connect(url: str, *, create: bool = False) -> sa.Engine:
    """Return the store at `url`, its tables as this release has them.

    create   make what is missing, and bring older tables up to date; without it, it is an error if they are not

    Raises EventError: it cannot be reached, or a later release wrote it.
    """
    place = None
    try:
        place = sa.make_url(url)
        if place.get_backend_name() == "sqlite" and not create:
            _look(place.database or "")
        engine = sa.create_engine(place, pool_pre_ping=place.get_backend_name() != "sqlite", pool_size=4)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up)
        with engine.begin() as connection:
            _migrate(connection, create)
        if create:
            with engine.begin() as connection:  # a store that cannot be written is none, and is not begun with
                connection.execute(sa.update(kept).where(sa.false()).values(value=0))
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        hint = _hint(place) if place is not None else "write sqlite:////PATH, or postgresql+psycopg://USER@HOST/NAME"
        raise StoreError(f"the store {_shown(url)} cannot be opened: {reason(error)}", hint) from None
    except CommandError:
        raise EventError(f"the store {_shown(url)} is of a later release of Piolet", "install that one") from None
    return engine


def _look(path: str) -> None:
    """Raise EventError if there is no file of a store that this process may read."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        hint = "its account and root may: runuser -u piolet-central -- piolet central ..."
        raise EventError(f"{own_name()} may not read the store {path}", hint) from None
    except OSError:
        raise EventError(f"there is no store at {path}", "piolet-central makes it when it starts") from None


def _hint(place: sa.URL) -> str:
    """Return what to do where a store cannot be opened."""
    who = own_name()
    if place.get_backend_name() != "sqlite":
        own = "the service's account may be let in alone: runuser -u piolet-central -- piolet central ..."
        return f"does it run, and does it let {who} in? " + (own if os.geteuid() == 0 else "psql as that account shows")
    path = place.database or ""
    return f"the directory and the file have to be of {who}: chown {who} {os.path.dirname(path)} {path}*"


def reason(error: Exception) -> str:
    """Return in one line what a data base complains of."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


def _shown(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "of [central] store"


def _set_up(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # A power cut may cost the last commits, and never the file: nodes send again what is missing (decision 123).
    for text in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={_BUSY_MS}", "cache_size=-32768"):
        cursor.execute(f"PRAGMA {text}")
    cursor.close()


def _migrate(connection: sa.Connection, create: bool) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    newest = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == newest:
        return
    if not create:
        raise EventError("the store is of another release of Piolet", "start piolet-central: it brings it up to date")
    command.upgrade(config, "head")


@contextlib.contextmanager
def alone(engine: sa.Engine) -> Iterator[None]:
    """Be the one writer of this store while the block runs. Raises EventError: there is another."""
    busy = EventError("another piolet-central writes this store", "systemctl status piolet-central")
    if engine.dialect.name == "sqlite":
        lock = f"{engine.url.database}.lock"
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{lock} cannot be opened: {error.strerror}", _hint(engine.url)) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            yield
        finally:
            os.close(descriptor)
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK))):
            raise busy
        yield
