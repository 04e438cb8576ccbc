"""`piolet observe read`: figures that other monitors recorded, as data of steps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from piolet.base.errors import UsageError
from piolet.cli.main import printable
from piolet.site.config import Config
from piolet.steps import identity

TEXT = "read what GSSR, dcgm-exporter, Omnistat or ClusterCockpit recorded"
_KINDS = ("clustercockpit", "dcgm", "omnistat", "pm_counters", "gssr")


def add_parser(actions: Any) -> None:
    """Add `read` to `piolet observe`."""
    parser = actions.add_parser("read", help=TEXT)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="files or directories of one format")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="where DATE/JOB.STEP is made")
    parser.add_argument("--kind", choices=_KINDS, help="the format (default: what the first file is)")
    parser.add_argument("--job", default="", metavar="JOB[.STEP]", help="which job, or whose data they are")
    parser.add_argument("--node", default="", metavar="NAME", help="the node's name, where the files do not tell it")
    parser.add_argument(
        "--gpu-model", default="", metavar="NAME", help="the GPUs' model, where the files do not tell it"
    )


def run(args: argparse.Namespace, settings: Config) -> int:
    """Read the files, and print the directory of each step that came of them."""
    from piolet.observe.foreign import reading  # pyarrow takes half a second to import
    from piolet.observe.foreign.common import Asked

    job, dot, step = args.job.partition(".")
    if args.job and not identity.is_name(f"{job}.{step if dot else 'batch'}"):
        raise UsageError(f"--job: '{args.job}' is not JOB or JOB.STEP")
    asked = Asked(job, step, args.node, args.gpu_model)
    for one in reading.read(args.paths, args.kind or "", asked):
        target = reading.write(one, args.out)
        rows = sum(len(table["time"]) for name, table in one.tables.items() if name != "quality" and table)
        remarks = len(one.tables["quality"]["source"])
        nodes = len(one.meta["nodes"])
        print(printable(f"{target}: {nodes} node{'s'[: nodes != 1]}, {rows} rows, {remarks} remarks on their quality"))
    return 0
