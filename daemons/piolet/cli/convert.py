"""`piolet env` from and to other engines, and into files: from-pyxis, from-enroot, export, new, edit, set.

Standard output has the result only; what it would lose, and the places of mistakes, go to standard error.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from piolet.base import files
from piolet.base.errors import EnvironmentFileError, PioletError, UsageError
from piolet.cli.main import printable
from piolet.environment.render import Rendered
from piolet.environment.source import text_of

_KEYS = "image, workdir, mount, env=NAME=VALUE and the others that --environment=FILE,KEY=VALUE takes"


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions."""
    for tool, example in (("pyxis", "srun --container-image=… …"), ("enroot", "enroot start …")):
        text = f"print the definition file that does what a job with {tool} does, and say what it loses"
        action = actions.add_parser(
            f"from-{tool}", help=text, description=f"{text.capitalize()}. Nothing is run.", allow_abbrev=False
        )
        action.add_argument(
            "words", metavar="COMMAND|SCRIPT", nargs=argparse.REMAINDER, help=f"a script, or the command: {example}"
        )
    text = "print the command of another engine that runs what a definition file says"
    export = actions.add_parser("export", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    export.add_argument("--to", metavar="ENGINE", required=True, choices=("podman", "docker", "apptainer"))
    export.add_argument("--offline", action="store_true", help="never ask a registry")
    export.add_argument("file", metavar="FILE", help="a file, or a name in EDF_PATH, as for --environment")
    export.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="what is to run")
    new = actions.add_parser("new", help="write a definition file", allow_abbrev=False)
    edit = actions.add_parser("edit", help="edit a definition file, and check it before it counts", allow_abbrev=False)
    put = actions.add_parser("set", help="change a definition file; comments and order stay", allow_abbrev=False)
    for action in (new, edit, put):
        action.description = f"{action.prog.rpartition(' ')[2].capitalize()} a definition file."
        action.add_argument("path", metavar="FILE")
    for action in (new, put):
        action.add_argument("changes", metavar="KEY=VALUE", nargs="*", help=_KEYS)
    put.add_argument("--remove", metavar="KEY", action="append", default=[], help="KEY, env.NAME or mount=TEXT")


ACTIONS = ("from-pyxis", "from-enroot", "export", "new", "edit", "set")


def run(args: argparse.Namespace, render: Callable[[str], Rendered]) -> int:
    """Do what `args` say and return the exit status; `render` makes a definition of a file."""
    if args.action == "export":
        return _export(args, render)
    if args.action in ("from-pyxis", "from-enroot"):
        return _convert(args.action.removeprefix("from-"), args.words)
    return {"new": _new, "edit": _edit, "set": _put}[args.action](args)


def _tell(text: str) -> None:
    print(f"piolet: warning: {printable(text)}", file=sys.stderr)


def _convert(tool: str, words: Sequence[str]) -> int:
    from piolet.environment import foreign, written

    if not words:
        raise UsageError(f"piolet env from-{tool} needs a script or a command")
    if len(words) == 1:
        found = list(foreign.commands(text_of(os.path.abspath(words[0]))[0]))
    else:
        found = list(foreign.commands(shlex.join(words)))
    made = (foreign.from_pyxis if tool == "pyxis" else foreign.from_enroot)(found)
    text = written.new(made.data)
    written.check("the result", text)
    sys.stdout.write(text)
    for sentence in made.lost:
        _tell(f"not in the definition: {sentence}")
    return 0


def _export(args: argparse.Namespace, render: Callable[[str], Rendered]) -> int:
    from piolet.environment import export

    rendered = render(args.file)
    definition, info = rendered.definition, rendered.info
    if info is None:
        raise EnvironmentFileError("without an image there is no container to run elsewhere")
    home = pwd.getpwuid(os.getuid()).pw_dir
    wanted = definition.home is not False and home not in definition.dropped
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    made = export.command(args.to, definition, info, home if wanted else "", words)
    print(" ".join(word if "$(" in word and word.startswith("--user=") else shlex.quote(word) for word in made.words))
    for sentence in made.lost:
        _tell(f"not the same with {args.to}: {sentence}")
    return 0


def _new(args: argparse.Namespace) -> int:
    from piolet.environment import request, written

    text = written.new(
        request.changes(args.changes), ["Keys and their meaning: man 5 edf", f"Try it: {_try(args.path)}"]
    )
    written.check(args.path, text)
    try:
        with open(args.path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise PioletError(f"{args.path} is there already", f"change it: piolet env set {args.path} KEY=VALUE") from None
    except OSError as error:
        raise PioletError(f"cannot write {args.path}: {error.strerror}") from None
    return 0


def _try(path: str) -> str:
    return f"piolet env check {shlex.quote(path if '/' in path else './' + path)}"


def _put(args: argparse.Namespace) -> int:
    from piolet.environment import written

    text, _ = text_of(os.path.abspath(args.path))
    _replace(args.path, written.changed(args.path, text, args.changes, args.remove))
    return 0


def _replace(path: str, text: str) -> None:
    """Put `text` in the place of the file at `path`, whole or not at all; its mode stays."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode & 0o777
        files.write_whole(target, text.encode("utf-8"), f"{target}.{os.getpid()}.new", mode=mode, exclusive=True)
    except OSError as error:
        raise PioletError(f"cannot write {path}: {error.strerror}") from None


def _edit(args: argparse.Namespace) -> int:
    """Have a copy edited until it is right or given up."""
    from piolet.environment import written

    before, _ = text_of(os.path.abspath(args.path))
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="piolet-edit-") as folder:
        copy = os.path.join(folder, os.path.basename(args.path))
        with open(copy, "w", encoding="utf-8") as file:
            file.write(before)
        while True:
            try:
                status = subprocess.run([*editor, copy], check=False).returncode
            except OSError as error:
                raise PioletError(f"cannot run {editor[0]}: {error.strerror}", "set EDITOR") from None
            if status != 0:
                raise PioletError(f"{editor[0]} ended with status {status}; {args.path} is as it was")
            text, _ = text_of(copy)
            try:
                written.check(args.path, text)
                break
            except EnvironmentFileError as error:
                said = "\npiolet: error: ".join(one.render() for one in (error, *error.others))
                print(f"piolet: error: {printable(said)}", file=sys.stderr)
                if not sys.stdin.isatty() or input("edit it again? [Y/n] ").strip().lower().startswith("n"):
                    raise PioletError(f"{args.path} is as it was") from None
    if text != before:
        _replace(args.path, text)
    return 0
