"""The table of kernels: printed, and written into its place in docs/kernels.md."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = "| Kernel | `uname -r` | passed | failed | skipped | minutes | images of the store |"
# Why a test is skipped where the kernel has not what it tests: no gap, and said in the row's last column.
_LACKS = "cannot be mounted here"


@dataclass(frozen=True)
class Row:
    """What came of a kernel: `way` is how it mounts images, the rest as in tools/slurm_versions."""

    name: str
    release: str
    way: str
    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


def complaints(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each test that failed or was skipped."""
    for row in rows:
        yield from (f"{row.name}: failed: {one}" for one in row.failed)
        yield from (f"{row.name}: skipped: {one}" for one in row.skipped)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield HEAD
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        counts = f"{row.passed} | {len(row.failed)} | {len(row.skipped)} | {row.seconds / 60:.1f}"
        yield f"| {row.name} | {row.release} | {counts} | {row.way} |"


def write(document: Path, rows: Sequence[Row]) -> None:
    """Put the rows into the document's table, in place of those of the same kernels, with the day."""
    text = document.read_text("utf-8")
    old = re.search(rf"^{re.escape(HEAD)}\n(?:\|.*\n)*\n(?:Taken on .*\n\n)?", text, re.MULTILINE)
    if old is None:
        raise ValueError(f"{document} has no table of kernels")
    new = {row.name: line for row, line in zip(rows, list(table(rows))[2:], strict=True)}
    kept = {line.split("|")[1].strip(): line for line in old[0].splitlines()[2:] if line.startswith("|")}
    lines = [*list(table([])), *(kept | new).values(), ""]
    lines += [f"Taken on {datetime.date.today()}, emulated, on a machine with {os.cpu_count()} cores.", ""]
    document.write_text(text.replace(old[0], "\n".join(lines) + "\n"), "utf-8")
