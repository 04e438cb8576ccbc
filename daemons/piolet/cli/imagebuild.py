"""`piolet image build`: an image from a Containerfile, built in a step of Slurm and brought in like an archive.

In a step it builds here. Elsewhere it starts one by srun, with itself as the command, and brings in what comes of it:
the image service is where users submit. The archive passes through the user's home, which nodes share.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from piolet.base.errors import ImageError, UsageError
from piolet.images import build
from piolet.site.config import Config


def add_parser(actions: Any) -> None:
    """Add `build` to the actions of `piolet image`."""
    parser = actions.add_parser("build", help="build an image from a Containerfile, in a step of Slurm")
    parser.add_argument("context", metavar="DIRECTORY", nargs="?", default=".", help="where COPY takes files from: .")
    parser.add_argument("--name", metavar="NAME[:TAG]", help="file it as localhost/NAME:TAG (default: the directory's)")
    parser.add_argument("-f", "--file", metavar="FILE", help="instead of DIRECTORY/Containerfile, or Dockerfile")
    parser.add_argument("--build-arg", metavar="NAME=VALUE", action="append", default=[], help="for an ARG of the file")
    parser.add_argument("--srun", metavar="OPTIONS", default="", help='of the step: --srun="-p build -c8 -t30"')
    parser.add_argument("-Q", "--quiet", action="store_true", help="show no progress of what comes into the store")
    parser.add_argument("--output", metavar="FILE", help="write an OCI archive, and bring nothing into the store")


def run(args: argparse.Namespace, config: Config) -> str | None:
    """Build; return the path of an archive to bring in and remove, or None: it is where `--output` wants it."""
    todo = build.recipe(args.context, args.file, args.build_arg)
    if args.output:
        archive = os.path.abspath(args.output)
        if os.path.lexists(archive):
            raise ImageError(f"{archive} is there already", "remove it, or name another")
    else:
        archive = f"{tempfile.mkdtemp(prefix='.piolet-build-', dir=os.path.expanduser('~'))}/image.tar"
    try:
        if "SLURM_STEP_ID" in os.environ:
            # A step that is cancelled has some seconds, in which what was built with is removed.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            build.build(todo, archive, config.images)
        else:
            _in_a_step(todo, archive, args)
    except BaseException:
        if not args.output:
            shutil.rmtree(os.path.dirname(archive), ignore_errors=True)
        raise
    return None if args.output else archive


def _in_a_step(todo: build.Recipe, archive: str, args: argparse.Namespace) -> None:
    try:
        options = shlex.split(args.srun)
    except ValueError as error:
        raise UsageError(f"--srun={args.srun}: {error}", "quote it as in a shell") from None
    words = ["srun", "--nodes=1", "--ntasks=1", *options, *_myself(args), "image", "build", f"--file={todo.file}"]
    words += [f"--build-arg={argument}" for argument in todo.arguments]
    words += [f"--output={archive}", "--", todo.context]
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise ImageError(f"cannot start srun: {error.strerror}", "Slurm's commands must be here") from None
    if done.returncode:
        raise ImageError(f"the step that built the image ended with status {done.returncode}", "see what it said above")


def _myself(args: argparse.Namespace) -> list[str]:
    config = [f"--config={args.config}"] if args.config else []
    return [os.path.abspath(sys.argv[0]), *config]
