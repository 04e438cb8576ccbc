"""`piolet doctor`: what is wrong with the installation on this machine, and how to mend it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from piolet import doctor
from piolet.base import texts
from piolet.doctor import configuration
from piolet.site.config import Config


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `piolet`."""
    text = "look at the installation, and say how to mend it"
    parser = commands.add_parser(
        "doctor", help=text, description="Look at the installation on this machine, and say how to mend what is wrong."
    )
    parser.add_argument(
        "--role",
        choices=("login", "node"),
        help="what must run here: piolet-imaged on a login node, pioletd on a node; else what is installed tells",
    )
    parser.set_defaults(reads_config=False)  # a broken one is something to find
    parser.add_argument("--json", action="store_true", help="print one JSON object a finding, a line each")


def run(args: argparse.Namespace, _: Config) -> int:
    """Print the findings; the exit status is 1 when something is bad."""
    path = Path(args.config) if args.config else None
    config, fault = configuration.read(path)
    # A daemon stands beside this command, and need not be on an administrator's PATH.
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    machine = doctor.Machine(config, path, fault, here=lambda name: _is_here(args.role, os.path.join(beside, name)))
    counts = dict.fromkeys((doctor.OK, doctor.WARN, doctor.BAD, doctor.SKIPPED), 0)
    for finding in doctor.examine(machine):
        counts[finding.state] += 1
        if args.json:
            print(json.dumps(asdict(finding)))
            continue
        print(f"{finding.state:8} {finding.check}: {finding.text}")
        if finding.hint and finding.state != doctor.OK:
            print(f"         hint: {finding.hint}")
    if not args.json:
        warned = texts.counted(counts[doctor.WARN], "warning")
        print(f"{counts[doctor.OK]} ok, {warned}, {counts[doctor.BAD]} bad")
    return 1 if counts[doctor.BAD] else 0


def _is_here(role: str | None, program: str) -> bool:
    """Return whether a daemon belongs on this machine: each has a package of its own, so where it is installed."""
    installed = os.access(program, os.X_OK)
    if os.path.basename(program) == "pioletd":
        return role == "node" or (installed and role != "login")
    return role == "login" or installed
