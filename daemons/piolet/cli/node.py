"""`piolet node NAME`: what is known of a node, for whoever wonders about one."""

from __future__ import annotations

import argparse
import json

from piolet.cli.main import printable
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `node`."""
    parser = subparsers.add_parser(
        "node",
        help="what is known of a node: its faults, and how many steps failed there",
        description="Asks the central service what is known of a node of the last seven days.",
        allow_abbrev=False,
    )
    parser.add_argument("node", metavar="NAME", help="Slurm's name of the node")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Ask, and print."""
    from piolet.cli import centralpeer
    from piolet.transport import statements
    from piolet.transport.asking import Asker

    target = statements.question("/v1/about", {"name": args.node})
    said = Asker(centralpeer.of_user(settings)).ask("GET", target).said
    print(json.dumps(said) if args.json else printable("\n".join(said["lines"])))
    return 0
