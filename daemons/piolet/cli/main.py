"""The `piolet` command: options, sub-commands, and what becomes of errors.

The modules of sub-commands are imported when they are named, since srun waits for this program.
Exit status: 0, 1 for an error, 2 for a wrong command line, 130 for an interrupt.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from piolet.base.errors import PioletError, UsageError
from piolet.site import config

COMMANDS = {
    "env": ("piolet.cli.env", "check, render and explain environment definition files"),
    "hooks": ("piolet.cli.hooks", "list the hooks that definitions can switch on"),
    "attach": ("piolet.cli.attach", "run a shell or a command in the container of a step that runs"),
    "ssh": ("piolet.cli.ssh", "log in to the container of a step that runs, by SSH through srun"),
    "image": ("piolet.cli.image", "pull, list, import, remove and prune images"),
    "vet": ("piolet.cli.vet", "check nodes against a protocol"),
    "score": ("piolet.cli.score", "how much of the GPUs a step used: report, compare, export"),
    "observe": ("piolet.cli.observe", "figures of every step: what nodes record, and rules over what was recorded"),
    "job": ("piolet.cli.job", "what is known of a job, in one place"),
    "why": ("piolet.cli.why", "why a job ended as it did, and what to do"),
    "history": ("piolet.cli.history", "your last jobs, and what became of them"),
    "top": ("piolet.cli.top", "what a job does now, until it ends"),
    "mail": ("piolet.cli.mail", "send the owner of a job what is known of it, for Slurm's controller"),
    "mark": ("piolet.cli.mark", "say a figure of your application, or find those that it wrote"),
    "central": ("piolet.cli.central", "what the central service knows of nodes, and its rules"),
    "node": ("piolet.cli.node", "what is known of a node: its faults, and how many steps failed there"),
    "config": ("piolet.cli.config", "check, show and explain the site's configuration"),
    "doctor": ("piolet.cli.doctor", "look at the installation, and say how to mend it"),
}


class Command(Protocol):
    """What the module of a sub-command has."""

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the sub-command's parser."""

    def run(self, args: argparse.Namespace, settings: config.Config) -> int:
        """Do what `args` say and return the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in words or "-v" in words
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except PioletError as error:
        if verbose:
            _print_traceback()
        return _fail(
            "\npiolet: error: ".join(one.render() for one in (error, *error.others)),
            2 if isinstance(error, UsageError) else 1,
        )
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE  # the reader has gone, and that is its business
    except Exception as error:  # noqa: BLE001 - the last line of defence, a user sees no traceback
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            return _fail(f"cannot write {error.filename or 'all of the output'}: {error.strerror}", 1)
        if verbose:
            _print_traceback()
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"something unexpected happened: {what}\nhint: --verbose shows where; please report it", 1)


def _run(words: list[str]) -> int:
    try:
        args = build_parser(words).parse_args(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    reads = getattr(args, "reads_config", True)
    settings = config.load(Path(args.config) if args.config else None) if reads else config.Config()
    return _command(args.command).run(args, settings)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the sub-commands that occur in `words` have their options."""
    parser = argparse.ArgumentParser(
        prog="piolet", description="Containers for Slurm steps.", allow_abbrev=False, add_help=True
    )
    parser.add_argument("--config", metavar="FILE", help=f"the site's configuration, instead of {config.DEFAULT_PATH}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where errors come from")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        if name in words:
            _command(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"piolet {_version()}")
        parser.exit()


def _version() -> str:
    import importlib.metadata  # a tenth of the start-up time, and nobody else needs it

    try:
        return importlib.metadata.version("piolet")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _command(name: str) -> Command:
    return cast(Command, importlib.import_module(COMMANDS[name][0]))


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _drop_output() -> None:
    """Have what is not written yet go nowhere: the interpreter would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def _fail(text: str, status: int) -> int:
    print(f"piolet: error: {printable(text)}", file=sys.stderr)
    return status


def printable(text: str) -> str:
    """Return `text` with '?' for control characters: a file of somebody else must not steer the terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "?" for c in text)


if __name__ == "__main__":
    sys.exit(main())
