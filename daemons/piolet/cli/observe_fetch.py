"""`piolet observe fetch`: the data of a step as a directory of one's own, which any reader of Parquet reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from piolet.base import units
from piolet.base.texts import counted
from piolet.cli import stepmarks, stepsasked
from piolet.cli.main import printable
from piolet.site.config import Config

TEXT = "copy the data of a step into a directory: Parquet files, and meta.json"


def add_parser(actions: Any) -> None:
    """Add `fetch` to `piolet observe`."""
    parser = actions.add_parser("fetch", help=TEXT, description=f"{TEXT[0].upper()}{TEXT[1:]}.", allow_abbrev=False)
    parser.add_argument("step", metavar="JOB[.STEP]", help="which step: 112.0, or 112 where the job has one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new directory (default: JOB.STEP here)")


def run(args: argparse.Namespace, settings: Config) -> int:
    """Copy the files, and say where they are."""
    asked = stepsasked.service(settings)
    step = stepsasked.named(asked, args.step)
    target = stepsasked.fetch(asked, step, args.out or Path(step["name"]))
    stepmarks.of_fetched(target, asked, step["name"], settings)
    sizes = [path.stat().st_size for path in target.iterdir()]
    runs = "; the step runs still: these are its data so far" if step["state"] == "open" else ""
    print(printable(f"{target}: {counted(len(sizes), 'file')}, {units.size(sum(sizes))}{runs}"))
    return 0
