"""`piolet observe list`: of which steps there are data."""

from __future__ import annotations

import argparse
import json
import pwd
import time
from typing import Any

from piolet.base import units
from piolet.base.errors import UsageError
from piolet.base.texts import columns
from piolet.cli import stepsasked
from piolet.cli.main import printable
from piolet.site.config import Config

_STATES = {
    "open": "running", "whole": "whole", "thinned": "thinned", "rolled": "roll-up only", "gone": "removed",
}  # fmt: skip
TEXT = "list the steps that there are data of: your own, or all for the site's staff"


def add_parser(actions: Any) -> None:
    """Add `list` to `piolet observe`."""
    parser = actions.add_parser("list", help=TEXT, description=f"{TEXT[0].upper()}{TEXT[1:]}.", allow_abbrev=False)
    parser.add_argument("--job", metavar="JOB", default="", help="of one job")
    parser.add_argument("--user", metavar="USER", default="", help="of one user, a name or a number")
    parser.add_argument("--since", metavar="TIME", default="7d", help="of those that ran since: 7d, 12h (7d)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace, settings: Config) -> int:
    """Ask, and print a line for each step."""
    back = units.seconds_of(args.since)
    if not back or back <= 0:
        raise UsageError(f"--since is {args.since!r}", "a time like 7d or 12h")
    said = {} if args.job else {"after": f"{max(0.0, time.time() - back):.0f}"}
    said |= {"job": args.job} if args.job else {}
    said |= {"uid": str(_uid(args.user))} if args.user else {}
    found, complete = stepsasked.listed(stepsasked.service(settings), **said)
    if args.json:
        print(json.dumps({"steps": found, "complete": complete}))
        return 0
    print(printable("\n".join(lines(found, complete))))
    return 0


def lines(found: list[dict[str, Any]], complete: bool) -> list[str]:
    """Return what is printed."""
    if not found:
        return ["there are no data of such steps"]
    rows = [("STEP", "USER", "STARTED", "LENGTH", "DATA", "SIZE")]
    for one in found:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["start"]))
        length = units.age(max(0.0, one["last"] - one["start"]))
        state = _STATES.get(one["state"], one["state"])
        rows.append((one["name"], _name(one["uid"]), started, length, state, units.size(one["size"])))
    made = [line.rstrip() for line in columns(rows, right=(5,))]
    return made if complete else [*made, f"and more: these are the newest {len(found)}"]


def _uid(text: str) -> int:
    try:
        return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(f"there is no user {text}") from None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
