"""`piolet central`: what the central service knows, and its rules."""

from __future__ import annotations

import argparse

from piolet.cli import centralrules
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `central` and its actions."""
    parser = subparsers.add_parser(
        "central", help="what the central service knows of nodes, and its rules", description="The central service."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    centralrules.add_parsers(actions)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Carry out the command."""
    del settings
    return centralrules.run_rules(args) if args.action == "rules" else centralrules.run_replay(args)
