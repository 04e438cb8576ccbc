"""`piolet-central`: the command line of the central service."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from piolet.base import logs
from piolet.base.errors import UsageError
from piolet.cli import daemon
from piolet.site.config import Config, load

_LOG = logging.getLogger("piolet-central")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of piolet-central's command line."""
    return daemon.parser("piolet-central", "The central service of a cluster.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    logs.configure("%(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)
    return daemon.ended(_LOG, lambda: serve(load(arguments.config)))


def serve(settings: Config) -> None:
    """Serve until a signal comes. Raises PioletError, OSError."""
    try:
        from piolet.central import rulefiles, running  # what it needs besides is not on every machine
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the central service is not installed here: there is no {error.name}", "install the package piolet-central"
        ) from None
    accounts = {
        "the nodes' daemon": settings.node.account,
        "the nodes' forwarder": settings.forward.account,
        "the image service": settings.images.account,
    }
    running.refuse_account(os.geteuid(), accounts)
    rules = rulefiles.read(settings.central.rules)
    running.run(settings.central, settings.keep, settings.forward.account, rules)


if __name__ == "__main__":
    sys.exit(main())
