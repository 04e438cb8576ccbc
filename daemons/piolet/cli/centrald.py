"""`piolet-central`: the command line of the central service."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from piolet.base import logs
from piolet.base.errors import PioletError
from piolet.site.config import load

_LOG = logging.getLogger("piolet-central")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of piolet-central's command line."""
    parser = argparse.ArgumentParser(prog="piolet-central", description="The central service of a cluster.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration (default: piolet.toml's place)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    logs.configure("%(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)
    try:
        settings = load(arguments.config)
        from piolet.central import running  # what it needs besides is not on every machine

        accounts = {
            "the nodes' daemon": settings.node.account,
            "the nodes' forwarder": settings.forward.account,
            "the image service": settings.images.account,
        }
        running.refuse_account(os.geteuid(), accounts)
        running.run(settings.central, settings.forward.account, running.engine(settings.central.rules))
    except ModuleNotFoundError as error:
        _LOG.error("the central service is not installed here: there is no %s", error.name)
        _LOG.error("hint: install the package piolet-central")
        return 1
    except PioletError as error:
        for line in error.render().splitlines():
            _LOG.error("%s", line)
        return 1
    except OSError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
