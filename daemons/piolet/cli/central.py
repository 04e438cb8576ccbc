"""`piolet central`: what the central service knows, and its rules."""

from __future__ import annotations

import argparse

from piolet.base.errors import UsageError
from piolet.cli import centralasks, centralcopy, centralended, centralrules
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `central` and its actions."""
    parser = subparsers.add_parser(
        "central", help="what the central service knows of nodes, and its rules", description="The central service."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    centralasks.add_parsers(actions)
    centralrules.add_parsers(actions)
    centralcopy.add_parser(actions)
    centralended.add_parser(actions)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Carry out the command."""
    if args.action == "ended":
        return centralended.run(args, settings)
    if args.action in centralasks.ACTIONS:
        return centralasks.run(args, settings)
    try:
        return {**centralrules.ACTIONS, "copy": centralcopy.run}[args.action](args, settings)
    except ModuleNotFoundError as error:
        if error.name not in ("cel", "sqlalchemy", "alembic"):
            raise
        raise UsageError(
            f"the central service is not installed here: there is no {error.name}",
            "run it where the package piolet-central is",
        ) from None
