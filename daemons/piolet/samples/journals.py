"""What is read of a journal: the facts of a node, the sums of its samples, and the samples.

A journal may begin with sums of samples that are no longer there (compact.py), and ends with those of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from piolet.base.errors import ScoreError
from piolet.samples import journal

Array = np.ndarray[Any, np.dtype[Any]]

BATCH = 1 << 17


@dataclass
class NodeFacts:
    """What is known of a node's data besides samples. Times are nanoseconds since 1970."""

    header: dict[str, Any]
    quality: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    start: int = 0
    end: int = 0
    complete: bool = False

    def to_json(self) -> str:
        """Return what goes into the schema's metadata."""
        return json.dumps(self.__dict__)

    @property
    def thinned(self) -> float:
        """Over how many seconds samples were taken together, 0 where none were; see compact.py."""
        return max((float(e["width"]) for e in self.events if e["event"] == "thinned"), default=0.0)

    @property
    def devices(self) -> list[dict[str, Any]]:
        """The GPUs of the node, by index."""
        devices: list[dict[str, Any]] = self.header["devices"]
        return devices


def known_of(path: Path) -> tuple[NodeFacts, bytes, int] | None:
    """Return what a journal says besides samples, sums of its samples, and where those begin that these leave out (0:
    they are of all); None when it does not even have a header.

    One that ends with its sums is not read whole.
    """
    if last := journal.last_summary(str(path)):
        return (*split_summary(last, path), 0)
    summary, place = b"", 0

    def keep(frame: journal.Frame) -> None:
        nonlocal summary, place
        summary, place = frame.body, frame.end

    known = journal_facts(path, keep)
    if known is None:
        return None
    return (known, split_summary(summary, path)[1], place) if summary else (known, b"", 0)


def summary_frame(facts: NodeFacts, summary: bytes) -> bytes:
    """Return a frame S with all that is known of a node but its samples."""
    said = facts.to_json().encode()
    return journal.frame("S", len(said).to_bytes(4, "little") + said + summary)


def split_summary(body: bytes, path: Path) -> tuple[NodeFacts, bytes]:
    """Return what is in a frame S. Raises ScoreError."""
    size = int.from_bytes(body[:4], "little")
    try:
        return NodeFacts(**json.loads(body[4 : 4 + size])), body[4 + size :]
    except (ValueError, TypeError, RecursionError):
        raise ScoreError(f"{path} has a summary that cannot be read") from None


def journal_facts(path: Path, keep: Callable[[journal.Frame], None] = lambda _: None) -> NodeFacts | None:
    """Return what a journal says besides samples; None when it does not even have a header.

    `keep` is given the frames with sums of what stands before them.
    """
    facts: NodeFacts | None = None
    origin = 0
    for frame in journal.read(str(path)):
        if frame.kind == "H":
            header = frame.json()
            if header.get("version") != journal.VERSION:
                raise ScoreError(f"{path} is of version {header.get('version')}, which is not known here")
            origin = header["origin"]
            if facts is None:
                facts = NodeFacts(header, start=header["start"] + origin, end=header["start"] + origin)
            elif "again" not in header:
                facts.events.append({"event": "restart", "at": header["start"]})
                merge_devices(facts.devices, header["devices"])
        elif facts is None:
            raise ScoreError(f"{path} does not begin with a header")
        elif frame.kind == "Q":
            facts.quality = frame.json()
            facts.end = max(facts.end, facts.quality["at"] + origin)
        elif frame.kind == "E":
            event = frame.json()
            if event["event"] == "end":
                facts.complete = True
                facts.end = max(facts.end, event["at"] + origin)
            facts.events.append(event)
        elif frame.kind == "S":
            keep(frame)
        elif frame.kind == "G" and len(frame.body) >= 14:
            size = 14 + 8 * len(facts.header["gpu_columns"])
            facts.end = max(facts.end, int.from_bytes(frame.body[-size + 6 : -size + 14], "little") + origin)
    return facts


def merge_devices(known: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[int]:
    """Add to the devices of a node those of its next sampler, which may see others; return where these are in it."""
    places = {device["uuid"]: place for place, device in enumerate(known)}
    for device in found:
        if device["uuid"] not in places:
            places[device["uuid"]] = len(known)
            known.append(device)
        elif device.get("unseen"):
            known[places[device["uuid"]]]["unseen"] = device["unseen"]
    return [places[device["uuid"]] for device in found]


def journal_chunks(
    path: Path, kind: str, columns: Sequence[str], after: int = 0, batch: int = BATCH
) -> Iterator[dict[str, Array]]:
    """Yield the samples of a journal behind the place `after`, as `Node.chunks` does, some `batch` at a time."""
    layout: np.dtype[Any] | None = None
    origin, parts, rows = 0, [], 0
    devices: list[dict[str, Any]] = []
    places = np.zeros(0, int)
    for frame in journal.read(str(path)):
        if frame.kind == "H":
            header = frame.json()
            origin = header["origin"]
            names = header["gpu_columns" if kind == "G" else "host_columns"]
            layout = np.dtype(journal.record_type(names))
            places = np.array(merge_devices(devices, header["devices"]), int)
        elif frame.kind == kind and layout is not None and frame.end > after:
            records = np.frombuffer(frame.body, layout)
            part = _columns_of(records, columns, origin)
            if kind == "G":
                part["device"] = places[part["device"]]
            parts.append(part)
            rows += len(records)
            if rows >= batch:
                yield joined(parts)
                parts, rows = [], 0
    if parts:
        yield joined(parts)


def _columns_of(records: Array, columns: Sequence[str], origin: int) -> dict[str, Array]:
    known = records.dtype.names or ()
    chunk = {"device": records["device"], "span": records["span"], "end": records["end"] + origin}
    for name in columns:
        chunk[name] = records[name] if name in known else np.full(len(records), np.nan)
    return chunk


def joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Return chunks as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
