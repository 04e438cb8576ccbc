"""What others know of a step, joined with its data: events of the central store, and marks that its user sent.

    ROOT/marks/JOB.UID.jsonl    the marks of a user's job (observe/marks.py says a line); written whole each time

Marks are joined when tables are made of the step, and again when more are sent while its data are there; the file goes
when no step of the job is open any more. They are bytes that the user chose: checked when they come, bounded in number
and bytes, and of that user's steps alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe import marks, writing
from piolet.observe.catalogue import Row
from piolet.observe.gathering import in_order
from piolet.observe.marks import Said
from piolet.observe.reading import StepData

MARKS, SUFFIX = "marks", ".jsonl"
APART_S = 60.0  # of the clocks of nodes, and of who says when a step began
EVENTS = "events"
TABLES = (MARKS, EVENTS)
_FILE = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})\.jsonl")


@dataclass(frozen=True)
class Told:
    """Columns of `events`, None: nothing can be told now; and in words what is left out, or why."""

    rows: dict[str, list[Any]] | None
    left: list[str] = field(default_factory=list)


Happened = Callable[[Row, Sequence[str], float, float], Told]
"""Tells what happened to a step, on these nodes, from when to when (s since 1970)."""


def place(root: Path, job: str, uid: int) -> Path:
    """Return where the marks of a user's job are."""
    return root / MARKS / f"{job}.{uid}{SUFFIX}"


def sent(root: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield each file of marks, with its job and its user."""
    directory = root / MARKS
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _FILE.fullmatch(path.name):
            yield path, match[1], int(match[2])


def stamp(path: Path) -> float:
    """Return when a file was written, in seconds since 1970; 0: it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def said(path: Path) -> list[Said] | None:
    """Return the marks in a file; None: there is none. Raises ObserveError."""
    try:
        return list(marks.lines(files.read_small(str(path), marks.SENT_BYTES)[0]))
    except FileNotFoundError:
        return None
    except (OSError, files.NotRegularError) as error:
        raise ObserveError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no file'}") from None


def home(steps: Iterable[tuple[str, int]]) -> str:
    """Return the step that marks are of that say neither step nor time: the only one, or the script; '': none.

    steps   name and run of each step of the job; the last run's count
    """
    known = list(steps)
    last = max((run for _, run in known), default=0)
    names = {name for name, run in known if run == last}
    numbered = [name for name in names if name.isdecimal()]
    return numbered[0] if len(numbered) == 1 else "batch" if "batch" in names else ""


def of_step(found: Iterable[Said], step: str, at_home: str, begin: float, end: float) -> list[Said]:
    """Return the marks of a step from `begin` to `end`: what names no step is of those that ran then."""
    return [
        one for one in found
        if (one.step or (step if one.time is not None and (step.isdecimal() or step == at_home) else at_home)) == step
        and (one.time is None or begin - APART_S <= one.time <= end + APART_S)
    ]  # fmt: skip


def table(found: Iterable[Said], nodes: Iterable[str]) -> pa.Table:
    """Return marks as rows of the layout; a node that the step does not have is none."""
    known = set(nodes)
    own = [one if one.node in known else marks.at(one, "", one.step, one.task) for one in found]
    return in_order(writing.conformed(MARKS, marks.table(own)))


def quality(step: StepData, left: Sequence[str]) -> pa.Table:
    """Return the step's `quality`, with what is left out of its events, and not what was before."""
    before = step.quality
    kept = before.filter(pc.invert(pc.is_in(before["source"], pa.array([EVENTS]))))
    columns = {
        "source": [EVENTS] * len(left), "start": [step.start] * len(left), "end": [step.end] * len(left),
        "reason": list(left),
    }  # fmt: skip
    return pa.concat_tables([kept, writing.conformed("quality", columns)])


def join(step: StepData, row: Row, told: Told | None, found: Sequence[Said] | None, at_home: str) -> bool:
    """Write the tables `events`, `marks` and `quality` of a step as far as there is anything to say of them.

    told    None: nobody was asked; what is there stays
    found   all marks of the job, None: nothing was sent

    Returns whether a row of `events` or `marks` came. Raises ObserveError.
    """
    tables: dict[str, pa.Table] = {}
    if found is not None:
        of_this = of_step(found, row.step, at_home, step.start / 1e9, step.end / 1e9)
        tables[MARKS] = table(of_this, step.nodes)
    if told is not None and told.rows is not None:
        tables[EVENTS] = writing.conformed(EVENTS, told.rows)
    new = {name for name, one in tables.items() if not _same(one, step.table(name))}
    for name in new:
        writing.write_table(step.directory, name, tables[name])
    if told is not None:
        said_of_it = quality(step, told.left)
        if not _same(said_of_it, step.quality):
            writing.write_table(step.directory, "quality", said_of_it)
    return bool(new)


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Return whether two tables have the same rows, whatever their dictionaries are."""
    return len(one) == len(other) and all(
        bool(_plain(one[name]).equals(_plain(other[name]))) for name in one.column_names
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
