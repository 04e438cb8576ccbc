"""`piolet env devices`: what devices containers of this node can be given, and a container with them, without Slurm."""

from __future__ import annotations

import argparse
import os
import sys

from piolet.api import Entry, Files, Library, Link, Mount, Variable
from piolet.base import texts
from piolet.base.errors import UsageError
from piolet.site import config


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `devices` to the actions of `env`."""
    text = "list the devices of this machine, or run a command in a container with them, without Slurm"
    parser = actions.add_parser("devices", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("--show", metavar="NAME", help="print what a container with this device gets")
    parser.add_argument("--with", dest="names", metavar="NAME", action="append", default=[], help="for --in: a device")
    parser.add_argument("--in", dest="image", metavar="IMAGE", help="a directory, or a .sqsh file, to run COMMAND in")
    parser.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="for --in: a command with its words")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Do what `args` say and return the exit status."""
    from piolet.hooks import facts

    found = facts.devices(settings.hooks)
    if args.image is not None:
        return _run_in(args, settings, found.of(args.names))
    if args.words or args.names:
        raise UsageError("a command, or --with, needs --in IMAGE", "piolet env devices --with NAME --in IMAGE COMMAND")
    for text in found.broken.values():
        print(f"piolet: warning: {text}", file=sys.stderr)
    if args.show is not None:
        for entry in found.of([args.show]):
            print("\n".join(_lines(entry)))
        return 0
    for name in sorted(found.entries):
        mounts = sum(_mounts(entry) for entry in found.entries[name])
        print(f"{name}  {texts.counted(mounts, 'mount')}, by {found.origin[name]}")
    if not found.entries:
        print("no device: no specification in", ", ".join(settings.hooks.cdi), "and no driver of NVIDIA's")
    return 0


def _lines(entry: Entry) -> list[str]:
    if not isinstance(entry, Files):
        return [_line(entry)]
    place = entry.destination
    single: list[Entry] = [Mount(f"{entry.source}/{name}", f"{place}/{name}") for name in entry.names]
    single += [Link(f"{place}/{name}", target) for name, target in entry.links]
    single += [Library(name, f"{place}/{name}") for name in entry.found]
    return [_line(one) for one in single]


def _line(entry: Entry) -> str:
    if isinstance(entry, Mount):
        return f"mount    {entry.source} at {entry.destination}{', read-only' if entry.read_only else ''}"
    if isinstance(entry, Link):
        return f"link     {entry.path} -> {entry.target}"
    if isinstance(entry, Library):
        return f"library  {entry.soname} is {entry.path}"
    if isinstance(entry, Variable):
        return f"variable {entry.name}={entry.value}"
    return f"other    {entry}"


def _mounts(entry: Entry) -> int:
    return len(entry.names) if isinstance(entry, Files) else int(isinstance(entry, Mount))


def _run_in(args: argparse.Namespace, settings: config.Config, entries: list[Entry]) -> int:
    from piolet.container import alone
    from piolet.container.entries import collect

    if not args.words:
        raise UsageError("there is no command to run", "piolet env devices --with NAME --in IMAGE COMMAND")
    words = args.words[1:] if args.words[0] == "--" else args.words
    additions = collect(entries, {}, (), {})
    variables = {**os.environ, **additions.variables}
    return alone.run(os.path.abspath(args.image), additions, words, variables, settings.environment)
