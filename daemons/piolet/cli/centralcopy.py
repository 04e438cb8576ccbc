"""`piolet central copy`: brings the service's store into another data base."""

from __future__ import annotations

import argparse
import os

from piolet.base.errors import UsageError
from piolet.base.texts import counted
from piolet.site import config


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action."""
    text = "copy the store of the service, which is stopped, into another data base"
    parser = actions.add_parser("copy", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("store", metavar="STORE", help="where to, as [central] store has it: an empty one")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Copy, and say what was copied."""
    from piolet.central.settings import known_store
    from piolet.central.store.copying import copy

    if os.geteuid() == 0:
        raise UsageError(
            "root does not copy a store: what it makes would be root's",
            f"runuser -u {settings.central.account} -- piolet central copy STORE",
        )
    known_store(args.store)
    rows = copy(settings.central.store, args.store)
    others = f"{counted(rows['conclusions'], 'conclusion')} and {counted(rows['notes'], 'note')}"
    print(f"copied {rows['batches']} batches of records, {others}")
    print("set store in [central] of piolet.toml to it, and start the service: systemctl start piolet-central")
    return 0
