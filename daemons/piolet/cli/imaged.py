"""`piolet-imaged`: the command line of the image service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from piolet.base import logs
from piolet.base.errors import PioletError
from piolet.images.service import run
from piolet.site.config import load

_LOG = logging.getLogger("piolet-imaged")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of piolet-imaged's command line."""
    parser = argparse.ArgumentParser(prog="piolet-imaged", description="The image service of Piolet.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration (default: piolet.toml's place)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    logs.configure("%(name)s: %(message)s")
    os.umask(0o077)
    try:
        asyncio.run(run(load(arguments.config).images))
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
