"""Makes a step's directory out of its spool. Whatever kills this, the next one does the same again.

    spool/ID/NUMBER.frames   what came (observe/spool.py)
    spool/ID/NUMBER.part/    tables and facts of all files up to that number, which are removed then
    spool/ID/final/          the files of the directory, all of them, which are moved there; then the parts are removed

What comes later than that is added: the directory's tables are the first part then, and `facts.json` has what is known
of them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe import gaps, joining, layout, reading, rollup, spool, writing
from piolet.observe.catalogue import OPEN, SPOOL, WHOLE, Catalogue, Row, size_of
from piolet.observe.gathering import FACTS, Facts, facts_of, gathered, in_order, ns
from piolet.observe.joining import Happened

PART, FINAL, NEW = ".part", "final", ".new"
_ROWS_PER_GROUP = 400_000
_ON_ITS_WAY_S = 180.0
_MADE_HERE = (gaps.SOURCE, gaps.CLOCK)


def part(catalogue: Catalogue, row: Row) -> None:
    """Make a part of what came since the last one. Raises ObserveError, ScoreError."""
    spool.close(catalogue, row)
    row = catalogue.step(row.id) or row
    top = catalogue.root / SPOOL / str(row.id)
    done = max((int(path.stem) for path in _parts(top)), default=0)
    found = spool.closed(catalogue.root, row)
    todo = [path for path in found if int(path.stem) > done]
    if todo:
        _make_part(top / f"{todo[-1].stem}{PART}", todo)
    for path in found:
        path.unlink()


def _make_part(target: Path, frames: Sequence[Path]) -> None:
    new = _fresh(target.with_name(target.name + NEW))
    groups: list[Path] = []
    facts = Facts()
    for gathering, tables in gathered(one for path in frames for one in spool.read(path)):
        facts = gathering.facts
        if tables:
            groups.append(_fresh(new / f"{len(groups):04d}"))
        for name, table in tables.items():
            writing.write_table(groups[-1], name, table)
    files.write_whole(str(new / FACTS), facts.to_json(), str(new / f"{FACTS}{NEW}"), sync=True)
    _fsync(new)
    os.rename(new, target)
    _fsync(target.parent)


def finish(
    catalogue: Catalogue,
    row: Row,
    now: float,
    *,
    runs: bool = False,
    find: Callable[[Path], object] | None = None,
    happened: Happened | None = None,
) -> bool:
    """Make the step's directory; return whether nothing came meanwhile. Raises ObserveError, ScoreError.

    runs       it is one of a step that runs: more will be added
    find       writes what detectors find into a directory that has all else
    happened   tells what happened to the step and on its nodes
    """
    top = catalogue.root / SPOOL / str(row.id)
    target = catalogue.root / row.path
    try:
        if not (top / FINAL).is_dir():
            part(catalogue, row)
            new = _make_final(catalogue, catalogue.step(row.id) or row, top, target, runs)
            join(catalogue, row, new, happened)
            if find is not None:
                find(new)
            _fsync(new)
            os.rename(new, top / FINAL)
            _fsync(top)
        target.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in (top / FINAL).iterdir()}
        for name in sorted(there - {layout.META_FILE}) + [layout.META_FILE] * (layout.META_FILE in there):
            os.replace(top / FINAL / name, target / name)
        for name in {writing.path_of(target, name).name for name in joining.TABLES} - there:
            (target / name).unlink(missing_ok=True)
        found, judged = (writing.path_of(target, name) for name in ("findings", "judged"))
        if judged.name in there and found.name not in there:  # with more data nothing is found any more
            found.unlink(missing_ok=True)
        _fsync(target)
        for path in _parts(top):
            shutil.rmtree(path)
        (top / FINAL).rmdir()
        with catalogue.transaction():
            latest = catalogue.step(row.id)
            if runs or latest is None or latest.bytes or spool.closed(catalogue.root, latest):
                catalogue.change(row, changed=now, size=size_of(target))
                return False
            last = reading.open_step(target).end / 1e9
            catalogue.change(row, state=WHOLE, changed=now, size=size_of(target), last=last)
        shutil.rmtree(top)
    except OSError as error:
        raise ObserveError(f"the data of {row.name} cannot be written: {error.filename}: {error.strerror}") from None
    return True


def join(catalogue: Catalogue, row: Row, directory: Path, happened: Happened | None) -> bool:
    """Join what others know of a step with its data; return whether a row came. Raises ObserveError."""
    found = joining.said(joining.place(catalogue.root, row.job, row.uid))
    if found is None and happened is None:
        return False
    of_job = catalogue.rows("job = ? and uid = ?", row.job, row.uid) if found is not None else []
    step = reading.open_step(directory)
    told = happened(row, step.nodes, step.start / 1e9, step.end / 1e9) if happened is not None else None
    return joining.join(step, row, told, found, joining.home((one.step, one.run) for one in of_job))


def _make_final(catalogue: Catalogue, row: Row, top: Path, target: Path, runs: bool) -> Path:
    """Make all tables that the step's own data tell; return where."""
    new = _fresh(top / f"{FINAL}{NEW}")
    parts = _parts(top)
    groups = [group for path in parts for group in sorted(path.iterdir()) if group.is_dir()]
    facts = facts_of(target / FACTS)
    for path in parts:
        facts.add(facts_of(path / FACTS))
    meta = meta_of(catalogue, row, facts)
    begin, end = meta["start"] / 1e9, meta.get("end", _last_of(facts, meta["start"])) / 1e9
    sources = [*([target] if target.is_dir() else []), *groups]
    for table in layout.TABLES:
        if table not in ("quality", "rollup", "findings", "judged"):
            writing.write_pieces(new, table, _grouped(_pieces(sources, table)))
    remarks = {node: catalogue.remarks(node) for node in {*meta["nodes"], *facts.runs}}
    found = gaps.gaps(facts, meta["nodes"], begin, end, remarks, str(meta.get("state", "")))
    if runs:  # what is on its way is no gap yet
        found = (gap for gap in found if gap.start < end - _ON_ITS_WAY_S)
    said = [piece for piece in _pieces(sources, "quality") if len(piece)]
    own = [piece.filter(pc.invert(pc.is_in(piece["source"], pa.array(_MADE_HERE)))) for piece in said]
    made = writing.conformed("quality", gaps.rows(facts, found, begin, end))
    writing.write_table(new, "quality", _distinct(pa.concat_tables([*own, made])))
    writing.write_meta(new, meta)
    rollup.write(reading.open_step(new))
    files.write_whole(str(new / FACTS), facts.to_json(), str(new / f"{FACTS}{NEW}"), sync=True)
    return new


def _distinct(table: pa.Table) -> pa.Table:
    """Return a table without rows that are there already."""
    seen: set[tuple[Any, ...]] = set()
    keep = []
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        keep.append(row not in seen)
        seen.add(row)
    return table.filter(pa.array(keep, pa.bool_()))


def meta_of(catalogue: Catalogue, row: Row, facts: Facts) -> dict[str, Any]:
    """Return what meta.json is to say."""
    said = catalogue.job(row.job)
    seen = catalogue.nodes(row)
    began = [one["began"] for one in facts.nodes.values() if isinstance(one.get("began"), int | float)]
    began += [run.start for runs in facts.runs.values() for run in runs[:1]] if not began else []
    meta: dict[str, Any] = {
        **{key: value for key, value in said.items() if key in layout.META},
        "job": row.job, "step": row.step, "uid": row.uid, "start": ns(min(began, default=row.start)),
        "nodes": list(dict.fromkeys([*said.get("nodes", ()), *sorted({*facts.runs, *seen})])),
    }  # fmt: skip
    if row.run:
        meta["restarts"] = row.run
    with contextlib.suppress(KeyError):
        meta["user"] = pwd.getpwuid(row.uid).pw_name
    nodes = set(meta["nodes"])
    if facts.ended and nodes <= facts.ended.keys():
        meta["end"] = max(meta["start"], ns(max(facts.ended.values())))
    elif isinstance(said.get("end"), int):
        meta["end"] = max(said["end"], _last_of(facts, meta["start"]))
    devices = {node: one["devices"] for node, one in facts.nodes.items() if isinstance(one.get("devices"), list)}
    if devices:
        meta["devices"] = devices
    if facts.offsets:
        meta["clock_offsets"] = {
            node: {"seconds": offset, "time": when} for node, (offset, when) in sorted(facts.offsets.items())
        }
    intervals = [facts.interval(node) for node in facts.nodes]
    if intervals:
        meta["interval"] = max(set(intervals), key=intervals.count)
    marks = {str(one["simulated"]) for one in facts.nodes.values() if one.get("simulated")}
    if marks:
        meta["simulated"] = min(marks)
    return meta


def _last_of(facts: Facts, start: int) -> int:
    last = [run.end for runs in facts.runs.values() for run in runs] + list(facts.ended.values())
    return max(start, ns(max(last, default=0.0)))


def _pieces(directories: Sequence[Path], table: str) -> Iterator[pa.Table]:
    """Yield a table of several directories, each of which has a part of it."""
    for directory in directories:
        yield from reading.pieces(directory, table)


def _grouped(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield pieces that are large enough to be groups of rows, each in order."""
    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= _ROWS_PER_GROUP:
            yield in_order(pa.concat_tables(held)) if len(held) > 1 else held[0]
            held = []
    if held:
        yield in_order(pa.concat_tables(held)) if len(held) > 1 else held[0]


def _parts(top: Path) -> list[Path]:
    return sorted(path for path in top.glob(f"*{PART}") if path.is_dir()) if top.is_dir() else []


def _fresh(path: Path) -> Path:
    """Return an empty directory."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _fsync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_half_done(catalogue: Catalogue, row: Row) -> bool:
    """Return whether a step's files are being moved to its directory: parts of before are to be removed first."""
    return (catalogue.root / SPOOL / str(row.id) / FINAL).is_dir()


def is_due(catalogue: Catalogue, row: Row, now: float, silent_s: float, settle_s: float) -> bool:
    """Return whether a step's directory is to be made: all its nodes ended a while ago, or it is silent for long."""
    if row.state != OPEN:
        return False
    ended = catalogue.nodes(row)
    return now - row.last >= (settle_s if ended and all(ended.values()) else silent_s)
