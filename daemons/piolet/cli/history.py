"""`piolet history`: a user's last jobs, with what became of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from piolet.base import units
from piolet.base.errors import UsageError
from piolet.cli.main import printable
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `history`."""
    text = "your last jobs, and what became of them"
    parser = subparsers.add_parser("history", help=text, description="Your last jobs.", allow_abbrev=False)
    parser.add_argument("--since", metavar="TIME", default="7d", help="how far back: 12h, 30d (7d)")
    parser.add_argument("-n", dest="most", metavar="N", type=int, default=20, help="so many at most (20)")
    parser.add_argument("--user", metavar="NAME", help="of another user (staff)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print it."""
    from piolet.cli.job import sources_of
    from piolet.observe import jobtext
    from piolet.slurm import onejob
    from piolet.system.accounts import own_name

    back = units.seconds_of(args.since)
    if not back or back <= 0:
        raise UsageError(f"--since is {args.since!r}", "a time like 7d or 12h")
    if args.most < 1:
        raise UsageError(f"-n is {args.most}", "a whole number from 1 on")
    user = args.user or own_name()
    sources = sources_of(settings)
    if user != own_name() and not sources.staff:
        raise UsageError(f"the jobs of {user} are not yours", "[central] staff says who sees all jobs")
    runs = onejob.last_of(user, time.time() - back)
    runs = sorted(runs, key=lambda one: one.start or one.submit or 0.0)[-args.most :]
    mine = user == own_name() or sources.directory
    noted = {one.number: _noted(sources.place(user) if mine else None, one) for one in runs}
    if args.json:
        print(json.dumps([{**dataclasses.asdict(one), "results": noted[one.number]} for one in reversed(runs)]))
        return 0
    if not runs:
        print(f"no job of {user} in the last {args.since}")
        return 0
    print(printable("\n".join(jobtext.history(runs, noted))))
    return 0


def _noted(place: str | None, run: Any) -> str:
    """Return which results there are of a job that did not begin after them."""
    from piolet.observe import results

    words = {results.VET: "vetted", results.SCORE: "scored", results.MARKS: "marks"}
    there = [
        word for kind, word in words.items()
        if any(path.lstat().st_mtime >= (run.start or 0.0) for path in results.of_job(place, kind, run.number))
    ]  # fmt: skip
    return ", ".join(there)
