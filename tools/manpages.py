"""Writes the manual pages and the shell completion, from the parsers, the settings and the guides: `make man`.

Every page is put together as Markdown; lowdown makes roff of it. Completion is shtab's. What is written is committed,
and a test holds it against what would be written now.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab
from piolet.cli import centrald, forwardd, imaged
from piolet.cli import main as cli
from piolet.cli import pioletd as node
from piolet.site import config

ROOT = Path(__file__).resolve().parents[1]
MAN, COMPLETION = ROOT / "docs" / "man", ROOT / "etc" / "completion"
# What plugins and other programs of ours call, and no person.
_INTERNAL = {"gate", "submit", "end", "ended"}
# Whoever looks for one of these finds the page of all daemons.
_DAEMONS = ("piolet-imaged", "piolet-central", "piolet-forward")


def piolet_parser() -> argparse.ArgumentParser:
    """Return the parser of `piolet` with the options of every sub-command."""
    parser = cli.build_parser(list(cli.COMMANDS))
    for sub in subcommands(parser).values():
        for action in sub._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in _INTERNAL & set(action.choices):
                    del action.choices[name]
                action._choices_actions = [one for one in action._choices_actions if one.dest not in _INTERNAL]
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers below `parser`, by name."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    own = piolet_parser()
    commands = "".join(_command(f"piolet {name}", sub) for name, sub in subcommands(own).items())
    files = (
        "## FILES\n\n`/etc/piolet/piolet.toml`: the site's configuration, piolet.toml(5).\n\n"
        "## EXIT STATUS\n\n0; 1 for an error; 2 for a wrong command line; 3 where vetting found too few good nodes.\n\n"
        "## SEE ALSO\n\nedf(5), vet-protocol(5), piolet-rules(5), piolet.toml(5), pioletd(8), srun(1)\n"
    )
    daemon = (
        f"Runs on every compute node, as root; systemd starts it.\n\n{_options(node.build_parser())}"
        f"## PIOLET-IMAGED\n\nThe image service, which is never root.\n\n{_options(imaged.build_parser())}"
        "## PIOLET-CENTRAL\n\nThe central service, on one machine of a cluster, by an account of its own.\n\n"
        f"{_options(centrald.build_parser())}"
        "## PIOLET-FORWARD\n\nTakes a compute node's events to the central service, by an account of its own.\n\n"
        f"{_options(forwardd.build_parser())}"
        "## SEE ALSO\n\npiolet(1), piolet.toml(5)\n"
    )
    return {
        "piolet.1": page(
            "piolet", 1, "containers, vetting and scores for Slurm steps", _options(own) + commands + files
        ),
        "pioletd.8": page("pioletd", 8, "Piolet's daemons", daemon),
        **{f"{name}.8": ".so man8/pioletd.8\n" for name in _DAEMONS},
        "piolet.toml.5": page("piolet.toml", 5, "the configuration of Piolet", _settings()),
        "edf.5": page("edf", 5, "environment definition files", _guide("edf.md")),
        "vet-protocol.5": page("vet-protocol", 5, "what nodes are checked for", _guide("vet.md")),
        "piolet-rules.5": page("piolet-rules", 5, "what the central service concludes of events", _guide("rules.md")),
    }


def completion() -> dict[str, str]:
    """Return the completion scripts by their file name."""
    return {
        "piolet.bash": shtab.complete(piolet_parser(), "bash"),
        "_piolet": shtab.complete(piolet_parser(), "zsh"),
    }


def page(name: str, section: int, what: str, body: str) -> str:
    """Return a manual page; `body` is Markdown whose headings are of the second level."""
    text = f"# NAME\n\n{name} - {what}\n\n# DESCRIPTION\n\n{body}"
    text = re.sub(r"^##(#?) ", lambda match: "#" + match[1] + " ", text, flags=re.MULTILINE)
    command = [
        "lowdown", "-s", "-tman", "-M", f"title={name}", "-M", f"section={section}", "-M", "source=Piolet",
        "--parse-no-autolink", "--out-no-smarty",
    ]  # fmt: skip
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return "'\\\" t\n" + done.stdout


def _guide(name: str) -> str:
    """Return a guide without its title; its links become words."""
    text = (ROOT / "docs" / name).read_text("utf-8").partition("\n")[2].lstrip()
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    text = f"## {name.upper()}\n\n{parser.description or ''}\n\n"
    text += _options(parser)
    for action, sub in subcommands(parser).items():
        text += f"### {name} {action}\n\n{_sentence(parser, action)}\n\n{_options(sub)}"
    return text


def _sentence(parser: argparse.ArgumentParser, name: str) -> str:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return next((one.help or "" for one in actions[0]._choices_actions if one.dest == name), "")


def _options(parser: argparse.ArgumentParser) -> str:
    lines = list(_arguments(parser))
    return "\n".join(lines) + "\n\n" if lines else ""


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, (argparse._SubParsersAction, argparse._HelpAction)) or action.help == argparse.SUPPRESS:
            continue
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.choices:
            value = "|".join(map(str, action.choices))
        names = ", ".join(action.option_strings)
        what = f"{names} {value}" if names and action.nargs != 0 else names or value
        yield f"- `{what.strip()}`: {(action.help or '').replace('%%', '%')}"


def _settings() -> str:
    text = "TOML. A setting that is not there has its default; an unknown one is an error.\n\n"
    for part in dataclasses.fields(config.Config):
        section = getattr(config.Config(), part.name)
        text += f"## [{part.name}]\n\n"
        for one in dataclasses.fields(section):
            value = getattr(section, one.name)
            default = json.dumps(list(value) if isinstance(value, tuple) else value)
            text += f"- `{one.name} = {default}`: {one.metadata['help']}\n"
        text += "\n"
    return text + "## SEE ALSO\n\npiolet(1), pioletd(8); `piolet config sample`, `piolet config check`\n"


def main() -> int:
    """Write everything."""
    if shutil.which("lowdown") is None:
        print("tools.manpages: lowdown is not installed\nhint: apt-get install lowdown", file=sys.stderr)
        return 1
    for directory, files in ((MAN, pages()), (COMPLETION, completion())):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
