"""Keeps a node's journal within a bound, however long its step is.

A journal that has grown to the bound is written anew at half of it: the sums of all its samples as they came, and the
samples themselves taken together over twice the time, or four times, until they fit. So figures are made of all
samples, and what is thinned is only what is drawn and exported; an event "thinned" says over how many seconds.

What is taken together is what lies in one piece of a grid of time, of one device, with the same activity told:

    shares, rates, power, temperatures, clocks    the mean, weighted by what each sample covers
    energy                                        the last value: it is a counter
    clock_events                                  each bit that was set in any
    xid                                           the largest

A mean over a piece in which a value was told now and then is the mean of what was told. Runs as the user, in the
writer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.dataset import Node
from piolet.samples.journals import Array, journal_chunks, known_of, summary_frame

_GRID = 390_625  # ns; as the bins of timelines: widths are this times a power of two
_WIDEST = 1 << 50
_BATCH = 1 << 14
_SPARSE = 0.5  # a counter that fewer of the samples tell is read now and then, and does not divide what is together
_ACTIVITY = frozenset(q.name for q in (*GPU_QUANTITIES, *HOST_QUANTITIES) if q.unit in ("1", "B/s", "cores"))
_LAST, _BITS, _MOST = ("energy",), ("clock_events",), ("xid",)


def compact(path: Path, fd: int, bound: int, summary: Callable[[Node], bytes]) -> None:
    """Write a journal anew, to the descriptor `fd` of an empty file, in about half of `bound` bytes.

    summary    returns the sums of all samples of a node

    Raises OSError, ScoreError: it cannot be written, or it is no journal.
    """
    known = known_of(path)
    if known is None:
        raise ScoreError(f"{path} has no header")
    node = Node(path, *known)
    sums = summary(node)
    width = round(node.facts.thinned * 1e9) or 2 * _fitting(float(node.facts.header["period"]))
    while True:
        os.ftruncate(fd, 0)
        size = 0
        for piece in _anew(node, sums, width):
            done = 0
            while done < len(piece):
                done += os.write(fd, piece[done:])
            size += len(piece)
        if size <= bound // 2 or width > _WIDEST:
            return
        width *= 2


def _fitting(period: float) -> int:
    width = _GRID
    while width < 1e9 * period - 1:
        width *= 2
    return width


def _anew(node: Node, sums: bytes, width: int) -> Iterator[bytes]:
    """Yield the frames of a journal whose samples are taken together over `width` ns."""
    facts = node.facts
    header = facts.header
    origin = int(header["origin"])
    yield journal.json_frame("H", header)
    for event in facts.events:
        if event["event"] != "thinned":
            yield journal.json_frame("E", event)
    yield journal.json_frame("E", {"event": "thinned", "at": facts.end - origin, "width": width / 1e9})
    for kind, names in (("G", header["gpu_columns"]), ("N", header["host_columns"])):
        layout = np.dtype(journal.record_type(names))
        for chunk in journal_chunks(node.path, kind, names, batch=_BATCH):
            thin = thinned(chunk, width)
            records = np.zeros(len(thin["end"]), layout)
            for name in layout.names or ():
                records[name] = thin[name] - origin if name == "end" else thin[name]
            yield journal.frame(kind, records.tobytes())
    if facts.quality:
        yield journal.json_frame("Q", facts.quality)
    yield summary_frame(facts, sums)
    # What follows is of the sampler that runs now.
    yield journal.json_frame("H", _last_header(node.path) | {"again": True})


def _last_header(path: Path) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for frame in journal.read(str(path)):
        if frame.kind == "H":
            last = frame.json()
    return last


def thinned(chunk: dict[str, Array], width: int) -> dict[str, Array]:
    """Return samples, as `Node.chunks` yields them, taken together where they lie in one piece of `width` ns."""
    names = [name for name in chunk if name not in ("device", "span", "end")]
    seconds = chunk["span"].astype(np.float64)
    piece = (chunk["end"] - (seconds * 5e8).astype(np.int64)) // width
    told = np.stack([~np.isnan(chunk[name]) for name in names], axis=1)
    divides = np.array([name in _ACTIVITY for name in names], bool)
    dense = told[:, divides & (told.mean(axis=0) >= _SPARSE)] if len(told) else told
    shape = dense.astype(np.int64) @ (1 << np.arange(dense.shape[1])) if dense.size else np.zeros(len(piece), np.int64)
    order = np.lexsort((chunk["end"], shape, piece, chunk["device"]))
    keys = np.stack([chunk["device"].astype(np.int64), piece, shape])[:, order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(keys) != 0).any(axis=0)])) if len(order) else order
    seconds = seconds[order]
    result = {
        "device": chunk["device"][order][starts],
        "span": np.add.reduceat(seconds, starts).astype(np.float32) if len(starts) else chunk["span"],
        "end": np.maximum.reduceat(chunk["end"][order], starts) if len(starts) else chunk["end"],
    }
    for name in names:
        values = chunk[name][order].astype(np.float64)
        result[name] = _together(name, values, seconds, starts) if len(starts) else values
    return result


def _together(name: str, values: Array, seconds: Array, starts: Array) -> Array:
    known = ~np.isnan(values)
    if name in _LAST or name in _MOST:  # a counter within a short piece: its largest value is its last
        result: Array = np.fmax.reduceat(values, starts)
        return result
    if name in _BITS:
        bits = np.bitwise_or.reduceat(np.where(known, values, 0).astype(np.int64), starts).astype(np.float64)
        return np.where(np.logical_or.reduceat(known, starts), bits, np.nan)
    weights = np.where(known, seconds, 0.0)
    total = np.add.reduceat(weights, starts)
    sums = np.add.reduceat(np.where(known, values, 0.0) * weights, starts)
    mean: Array = np.divide(sums, total, out=np.full(len(starts), np.nan), where=total > 0)
    return mean
