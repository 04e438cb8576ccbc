"""`piolet observe export`: a table of a step's data for other tools, as CSV or as lines of JSON."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from piolet.base import files
from piolet.base.errors import ObserveError, UsageError
from piolet.cli import stepmarks, stepsasked
from piolet.site.config import Config

TEXT = "print a table of a step's data as CSV, or as lines of JSON"
TABLES = ("gpu", "host", "io", "net", "events", "marks", "quality", "rollup", "findings", "judged")


def add_parser(actions: Any) -> None:
    """Add `export` to `piolet observe`."""
    parser = actions.add_parser("export", help=TEXT, description=f"{TEXT[0].upper()}{TEXT[1:]}.", allow_abbrev=False)
    parser.add_argument("step", metavar="JOB[.STEP]|DIR", help="which step, or a directory with the data of one")
    parser.add_argument("--table", choices=TABLES, default="gpu", help="which table (gpu)")
    parser.add_argument("--columns", metavar="NAME,...", default="", help="which columns (all that have values)")
    text = "csv, or json: one object a line (csv)"
    parser.add_argument("--format", choices=("csv", "json"), default="csv", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default: standard output)")


def run(args: argparse.Namespace, settings: Config) -> int:
    """Write the table."""
    columns = [name for name in args.columns.split(",") if name]
    with contextlib.ExitStack() as stack:
        directory = Path(args.step)
        if not directory.is_dir():
            if "/" in args.step:
                raise UsageError(f"there is no directory {directory}")
            directory = stack.enter_context(_fetched(args.step, args.table, settings))
        if args.out is None:
            _export(directory, args.table, columns, args.format, sys.stdout.buffer)
            return 0
        aside = args.out.with_name(f".{args.out.name}.{os.getpid()}")
        try:
            with files.replacing(str(args.out), str(aside)), aside.open("wb") as out:
                _export(directory, args.table, columns, args.format, out)
        except OSError as error:
            raise ObserveError(f"cannot write {args.out}: {error.strerror}") from None
    return 0


@contextlib.contextmanager
def _fetched(name: str, table: str, settings: Config) -> Iterator[Path]:
    """Yield a directory with one table of a step."""
    asked = stepsasked.service(settings)
    step = stepsasked.named(asked, name)
    with tempfile.TemporaryDirectory(prefix="piolet-") as place:
        found = stepsasked.fetch(asked, step, Path(place) / "step", (stepsasked.META, f"{table}.parquet"))
        if table == "marks":
            stepmarks.of_fetched(found, asked, step["name"], settings)
        yield found


def _export(directory: Path, table: str, columns: list[str], kind: str, out: BinaryIO) -> None:
    from piolet.observe import exporting, reading  # pyarrow takes half a second to import

    step = reading.open_step(directory)
    exporting.write(step, table, columns, kind, out)
    out.flush()
