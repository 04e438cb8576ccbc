"""What the command lines of daemons share: their options, and how an error ends them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from piolet.base.errors import PioletError


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a daemon that has a configuration and nothing else."""
    made = argparse.ArgumentParser(prog=name, description=description)
    made.add_argument("--config", type=Path, metavar="FILE", help="the configuration (default: piolet.toml's place)")
    return made


def ended(log: logging.Logger, work: Callable[[], None]) -> int:
    """Do a daemon's work; return its exit status. An error is logged with its hint."""
    try:
        work()
    except PioletError as error:
        for line in error.render().splitlines():
            log.error("%s", line)
        return 1
    except OSError as error:
        log.error("%s", error)
        return 1
    return 0
