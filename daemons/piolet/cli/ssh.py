"""`piolet ssh`: the SSH client to the container of a step that runs, through srun and the hook ssh, without a port."""

from __future__ import annotations

import argparse
import os
import shlex

from piolet.base.errors import PioletError, UsageError
from piolet.cli import attach as command
from piolet.environment import pinned
from piolet.site import config

_SERVE = "/run/piolet/ssh/serve"
_HOOK = "com.hooks.ssh.enabled"
_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `ssh`."""
    parser = subparsers.add_parser(
        "ssh",
        help="log in to the container of a step that runs, by SSH through srun",
        description="Start the SSH client to the container of a step of yours that runs. Its environment has to have "
        "the hook ssh. What follows the step goes to ssh: options, such as -L 8888:localhost:8888, and a command.",
        allow_abbrev=False,
    )
    command.add_common(parser)
    parser.add_argument("words", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="options of ssh, and a command")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Become ssh."""
    step, node = command.choose(args.step, args.node)
    _check_hook(step.name, settings)
    command.keep_record(step, args.config or "")
    words = command.srun_words(step, node)
    proxy = shlex.join([*words, "-u", "-Q", _SERVE])
    options = [word for option in (f"ProxyCommand={proxy}", *_OPTIONS) for word in ("-o", option)]
    return command.become(["ssh", *options, f"{step.name}.{node}", *args.words])


def _check_hook(step: str, settings: config.Config) -> None:
    """Raise UsageError where it is known that the step's environment has no SSH server."""
    if "ssh" in settings.hooks.always:
        return
    try:
        found = pinned.find(os.environ, step)
    except PioletError:
        return  # nothing is known of it, and the step says so if it has none
    asked = found[0].definition.annotations
    if asked.get(_HOOK, "false") != "true":
        raise UsageError(
            f"the environment of step {step} has no SSH server",
            f'{_HOOK} = "true" in its [annotations]; or enter it without SSH: piolet attach {step}',
        )
