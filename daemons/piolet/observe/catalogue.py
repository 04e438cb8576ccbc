"""The catalogue of the data below one directory: a row for each step, and up to where nodes' journals are here.

    ROOT/index.sqlite            this
    ROOT/spool/ID/NUMBER.frames  what came of the step with that row and is in no table yet (observe/spool.py)
    ROOT/DATE/JOB.STEP[-rN]/     its data (observe/layout.py)
    ROOT/packed/DATE.zip         short steps of a day together (observe/packing.py): JOB.STEP[-rN]/FILE

It says what lies in that directory, so it lies there too, and moves with it (decision 138). Commits are synced, so that
what a node was told to be here is. A row is one of (job, step, run, uid): what a node says of another user's job makes
a row of that user's, which the other never sees. Rows are made again from the directories where the file is lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piolet.base.errors import ObserveError
from piolet.observe import layout
from piolet.observe.reading import read_meta
from piolet.steps import identity

INDEX, SPOOL, PACKED = "index.sqlite", "spool", "packed"
VERSION = 1
OPEN, WHOLE, THINNED, ROLLED, GONE = STATES = ("open", "whole", "thinned", "rolled", "gone")
"""What there is of a step: data that are still coming, all, samples as longer means, the roll-up alone, nothing."""
_BUSY_S = 30.0
_SCHEMA = """
create table if not exists steps (
    id integer primary key autoincrement, job text not null, step text not null, run integer not null,
    uid integer not null,
    path text not null unique, state text not null, start real not null, last real not null, changed real not null,
    segment integer not null default 1, bytes integer not null default 0, size integer not null default 0,
    packed text not null default ''
);
create index if not exists steps_of on steps (job, step, run, uid);
create index if not exists steps_by_time on steps (uid, start);
create index if not exists steps_by_state on steps (state, start);
create table if not exists nodes (
    id integer not null, node text not null, ended integer not null, primary key (id, node)
) without rowid;
create table if not exists streams (
    node text not null, epoch text not null, have integer not null, heard real not null, primary key (node, epoch)
) without rowid;
create table if not exists jobs (job text primary key, said text not null, time real not null) without rowid;
create table if not exists remarks (
    node text not null, epoch text not null, first integer not null, last integer not null, time real not null,
    kind text not null, why text not null, primary key (node, epoch, first)
) without rowid;
"""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Row:
    """A step.

    job, step   as layout.META has them; run: how often it was restarted before
    path        of its directory, below the root
    state       one of STATES
    start       seconds since 1970; `changed`: when this row's state began
    last        when it was last heard of; of a step that is not open, when it ended
    segment     the number of the file in the spool that grows, and how many bytes of it count
    size        bytes of its data, without the spool
    packed      the archive below the root that has its directory, with those of others; '': none
    """

    id: int
    job: str
    step: str
    run: int
    uid: int
    path: str
    state: str
    start: float
    last: float
    changed: float
    segment: int = 1
    bytes: int = 0
    size: int = 0
    packed: str = ""

    @property
    def directory(self) -> str:
        """Where its files are below the root, or within the archive that has them."""
        return self.path.rpartition("/")[2] if self.packed else self.path

    @property
    def name(self) -> str:
        """ "112.0", after a requeue "112.0-r1"."""
        return identity.run_name(self.job, self.step, self.run)


_COLUMNS = ", ".join(Row.__dataclass_fields__)


class Catalogue:
    """The catalogue of one root; for one thread. Raises ObserveError in all it does.

    reads   it is read alone, and there already
    """

    def __init__(self, root: Path, *, reads: bool = False) -> None:
        self.root = root
        with self._told():
            self._base = sqlite3.connect(root / INDEX, timeout=_BUSY_S, isolation_level=None)
            version = self._base.execute("pragma user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise ObserveError(f"{root / INDEX} is of another release", "a newer piolet-central wrote it")
            if reads:
                self._base.execute("pragma query_only = on")
                return
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = full")
            if version == 0:
                self._base.executescript(f"begin immediate; {_SCHEMA} pragma user_version = {VERSION}; commit")

    def close(self) -> None:
        """Close it."""
        self._base.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ObserveError(f"{self.root / INDEX}: {error}") from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let changes be all there, or none; no other process changes anything meanwhile."""
        with self._told():
            self._base.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._base.execute("rollback")
                raise
            try:
                self._base.execute("commit")
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    self._base.execute("rollback")
                raise

    def rows(self, where: str = "1", *values: object) -> list[Row]:
        """Return rows by a condition of SQL, the newest first."""
        with self._told():
            sql = f"select {_COLUMNS} from steps where {where} order by start desc, id desc"  # noqa: S608 - our texts
            return [Row(*one) for one in self._base.execute(sql, values)]

    @property
    def is_empty(self) -> bool:
        """Whether it has no row."""
        with self._told():
            return self._base.execute("select 1 from steps limit 1").fetchone() is None

    def step(self, number: int) -> Row | None:
        """Return the row with a number."""
        found = self.rows("id = ?", number)
        return found[0] if found else None

    def of(self, job: str, step: str, run: int, uid: int) -> Row | None:
        """Return a user's step, the newest where numbers of jobs began again."""
        found = self.rows("job = ? and step = ? and run = ? and uid = ?", job, step, run, uid)
        return found[0] if found else None

    def add(self, job: str, step: str, run: int, uid: int, start: float, now: float) -> Row:
        """Make the row of a step whose first data come."""
        path = place_of(job, step, run, start)
        with self._told():
            taken = self._base.execute("select 1 from steps where path = ?", (path,)).fetchone()
            path = path if taken is None else f"{path}.{uid}"
            sql = (
                "insert into steps (job, step, run, uid, path, state, start, last, changed) values (?,?,?,?,?,?,?,?,?)"
            )
            made = self._base.execute(sql, (job, step, run, uid, path, OPEN, start, now, now))
        found = self.step(made.lastrowid or 0)
        assert found is not None
        return found

    def change(self, row: Row, **fields: object) -> None:
        """Change fields of a row."""
        names = ", ".join(f"{name} = ?" for name in fields)
        with self._told():
            self._base.execute(f"update steps set {names} where id = ?", (*fields.values(), row.id))  # noqa: S608

    def forget(self, row: Row) -> None:
        """Remove a row."""
        with self._told():
            self._base.execute("delete from steps where id = ?", (row.id,))
            self._base.execute("delete from nodes where id = ?", (row.id,))

    # -- which nodes of a step are here, and which have ended

    def seen(self, row: Row, node: str, ended: bool) -> None:
        """Note that a node has data of a step, and whether these end."""
        sql = "insert into nodes values (?, ?, ?) on conflict do update set ended = max(ended, excluded.ended)"
        with self._told():
            self._base.execute(sql, (row.id, node, int(ended)))

    def nodes(self, row: Row) -> dict[str, bool]:
        """Return, by node, whether its data of a step have come to their end."""
        with self._told():
            return {node: bool(ended) for node, ended in self._base.execute(
                "select node, ended from nodes where id = ?", (row.id,)
            )}  # fmt: skip

    # -- up to where nodes' journals are here

    def have(self, node: str, epochs: Sequence[str] | None = None) -> dict[str, int]:
        """Return, by epoch, up to which number a node's records are here or known to be gone."""
        with self._told():
            found = dict(self._base.execute("select epoch, have from streams where node = ?", (node,)))
        return found if epochs is None else {epoch: found.get(epoch, 0) for epoch in epochs}

    def set_have(self, node: str, have: dict[str, int], heard: float) -> None:
        """Note it."""
        sql = (
            "insert into streams values (?, ?, ?, ?)"
            " on conflict do update set have = excluded.have, heard = excluded.heard"
        )
        with self._told():
            self._base.executemany(sql, [(node, epoch, seq, heard) for epoch, seq in have.items()])

    def remark(self, node: str, epoch: str, numbers: tuple[int, int], when: float, kind: str, why: str) -> None:
        """Note what a node says of itself, or why records of it never come; kept as long as steps may want it."""
        sql = "insert or ignore into remarks values (?, ?, ?, ?, ?, ?, ?)"
        with self._told():
            self._base.execute(sql, (node, epoch, *numbers, when, kind, why[:500]))

    def remarks(self, node: str) -> list[tuple[str, int, int, float, str, str]]:
        """Return (epoch, first, last, time, kind, why) of a node, by time."""
        sql = "select epoch, first, last, time, kind, why from remarks where node = ? order by time"
        with self._told():
            return list(self._base.execute(sql, (node,)))

    # -- what Slurm says of jobs

    def set_jobs(self, said: dict[str, dict[str, Any]], now: float) -> None:
        """Note what is known of jobs, besides what was."""
        with self.transaction():
            for job, fields in said.items():
                known = self.job(job) | fields
                sql = "insert or replace into jobs values (?, ?, ?)"
                self._base.execute(sql, (job, json.dumps(known, sort_keys=True), now))

    def job(self, job: str) -> dict[str, Any]:
        """Return what is known of a job: keys of layout.META."""
        with self._told():
            found = self._base.execute("select said from jobs where job = ?", (job,)).fetchone()
        said: dict[str, Any] = json.loads(found[0]) if found else {}
        return said

    def prune(self, before: float) -> None:
        """Forget remarks, jobs and streams that were last heard of before then."""
        with self._told():
            self._base.execute("delete from remarks where time < ?", (before,))
            self._base.execute("delete from jobs where time < ?", (before,))
            self._base.execute("delete from streams where heard < ?", (before,))


def place_of(job: str, step: str, run: int, start: float) -> str:
    """Return the directory of a step below the root: the day of its start in UTC, and its name."""
    day = datetime.datetime.fromtimestamp(start, datetime.UTC).strftime("%Y-%m-%d")
    return f"{day}/{identity.run_name(job, step, run)}"


def rebuild(root: Path, catalogue: Catalogue, now: float) -> int:
    """Make the rows of directories that have none; return how many. What cannot be read is left out."""
    known = {row.path for row in catalogue.rows()}
    made = 0
    with catalogue.transaction():
        for path in directories(root):
            place = str(path.relative_to(root))
            if place in known:
                continue
            try:
                meta = read_meta(path)
                uid, start = meta["uid"], meta["start"] / 1e9
                row = catalogue.add(meta["job"], meta["step"], int(meta.get("restarts") or 0), uid, start, now)
            except (ObserveError, KeyError, TypeError, ValueError):
                continue
            last = meta["end"] / 1e9 if isinstance(meta.get("end"), int) else start
            catalogue.change(row, path=place, state=state_of(path), last=last, size=size_of(path))
            made += 1
    return made


def directories(root: Path) -> Iterator[Path]:
    """Yield the directories of steps below a root."""
    for day in sorted(root.iterdir()):
        if _DATE.fullmatch(day.name) and day.is_dir():
            yield from (path for path in sorted(day.iterdir()) if (path / layout.META_FILE).is_file())


def state_of(directory: Path) -> str:
    """Return what a directory has, as far as its files tell."""
    names = {path.name for path in directory.iterdir()}
    rolled = f"rollup{layout.SUFFIX}" in names and not names & {f"gpu{layout.SUFFIX}", f"host{layout.SUFFIX}"}
    return ROLLED if rolled else WHOLE


def size_of(directory: Path) -> int:
    """Return the bytes of a directory's files."""
    return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
