"""`piolet-imaged`: the command line of the image service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from piolet.base import logs
from piolet.cli import daemon
from piolet.images.service import run
from piolet.site.config import load

_LOG = logging.getLogger("piolet-imaged")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of piolet-imaged's command line."""
    return daemon.parser("piolet-imaged", "The image service of Piolet.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    logs.configure("%(name)s: %(message)s")
    os.umask(0o077)
    return daemon.ended(_LOG, lambda: asyncio.run(run(load(arguments.config).images)))


if __name__ == "__main__":
    sys.exit(main())
