"""`pioletd`: the command line of the daemon on a compute node."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from piolet import __version__
from piolet.base import logs
from piolet.base.errors import PioletError
from piolet.node.main import run
from piolet.site.config import load


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of pioletd's command line."""
    parser = argparse.ArgumentParser(prog="pioletd", description="Piolet's daemon on a compute node.")
    parser.add_argument("--config", type=Path, help="configuration file (default: /etc/piolet/piolet.toml)")
    parser.add_argument("--version", action="version", version=f"pioletd {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log every step, and where its start spent the time")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; return its exit status."""
    chosen = build_parser().parse_args(arguments)
    logs.configure("%(asctime)s %(name)s: %(message)s")
    try:
        config = load(chosen.config)
        if chosen.verbose or config.node.verbose:
            logging.getLogger().setLevel(logging.DEBUG)
        named = ["--config", str(chosen.config.absolute())] if chosen.config else []
        return run(config, (sys.executable, "-I", "-m", "piolet.cli.main", *named))
    except PioletError as error:
        sys.stderr.write(f"pioletd: error: {error.render()}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
