"""`piolet config check|show|sample`: is piolet.toml right, what does it mean, what could it say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import Any

from piolet.site.config import DEFAULT_PATH, Config

_WIDTH = 100


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `piolet`."""
    parser = commands.add_parser("config", help="check, show and explain the site's configuration")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("check", help="say whether the configuration is right; exit status 0 or 1")
    actions.add_parser("show", help="print every setting with its value")
    sample = actions.add_parser(
        "sample", help="print a configuration with every setting, its default and what it means"
    )
    sample.set_defaults(reads_config=False)  # the site's may be what is to be mended


def run(args: argparse.Namespace, config: Config) -> int:
    """Carry out the command; `config` has been read, so it is right."""
    if args.action == "check" and args.config is None and not DEFAULT_PATH.exists():
        print(f"there is no {DEFAULT_PATH}; the defaults hold")
    elif args.action == "check":
        print(f"{args.config or DEFAULT_PATH} is valid")
    elif args.action == "show":
        print(show(config), end="")
    else:
        print(sample(), end="")
    return 0


def show(config: Config) -> str:
    """Return the configuration as TOML, every setting spelled out."""
    return "\n".join(_section(name, getattr(config, name), commented=False) for name in _names(config))


def sample() -> str:
    """Return a commented piolet.toml in which every setting stands with its default."""
    config = Config()
    head = "# piolet.toml: every setting with its default. Made by: piolet config sample\n"
    return "\n".join([head, *(_section(name, getattr(config, name), commented=True) for name in _names(config))])


def _names(config: Config) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _section(name: str, section: Any, *, commented: bool) -> str:
    lines = [f"[{name}]"]
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        # JSON's strings, numbers, booleans and arrays are TOML's.
        text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        if commented:
            lines += [f"# {line}" for line in textwrap.wrap(field.metadata["help"], _WIDTH)]
            lines += [f"#{field.name} = {text}", ""]
        else:
            lines.append(f"{field.name} = {text}")
    return "\n".join(lines).rstrip() + "\n"
