"""`piolet why JOB`: why a job ended as it did, the most likely reason first."""

from __future__ import annotations

import argparse
import dataclasses
import json

from piolet.base.errors import UsageError
from piolet.cli import job
from piolet.cli.main import printable
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `why`."""
    text = "why a job ended as it did, and what to do"
    parser = subparsers.add_parser("why", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("job", metavar="JOB", help=job.FORMS)
    parser.add_argument("--json", action="store_true", help="the reasons as JSON, as in `piolet job --json`")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print it."""
    from piolet.observe import jobtext

    found = job.views(args.job, settings, why_only=True)
    if isinstance(found, list):
        bad = next((one for one in found if one.is_over and one.state != "COMPLETED"), found[0])
        raise UsageError(f"{args.job} are {len(found)} jobs", f"name one of them: piolet why {bad.shown}")
    lines = jobtext.reasons(found.why)
    if args.json:
        lines = [json.dumps([dataclasses.asdict(one) for one in found.why])]
    print(printable("\n".join(lines)))
    return 0
