"""`piolet hooks list`: which hooks there are on this machine, their options, and what stands against one."""

from __future__ import annotations

import argparse
import os

from piolet.api import Hook
from piolet.base.errors import PioletError
from piolet.hooks.catalogue import Catalogue, Installed
from piolet.site import config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `hooks` and its actions."""
    parser = subparsers.add_parser(
        "hooks", help="list the hooks that definitions can switch on", description="Hooks of containers."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "list the hooks of this machine, with their options"
    actions.add_parser("list", help=text, description=text.capitalize() + ".", allow_abbrev=False)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print the list. Exit status 1: one of the site's hooks cannot be loaded."""
    status = 0
    catalogue = Catalogue(settings.hooks.directory)
    for hook in sorted(catalogue.installed().values(), key=lambda one: one.name):
        print(f"{hook.name:<20}  {_origin(hook)}")
        try:
            _describe(hook, catalogue.load(hook), settings)
        except PioletError as error:
            print(f"    cannot be used: {error.message}")
            status = 1
    if os.path.isdir(settings.hooks.directory) and not os.access(settings.hooks.directory, os.R_OK):
        print(f"{settings.hooks.directory} cannot be read by you, so the site's own hooks are not shown")
    return status


def _origin(hook: Installed) -> str:
    return f"the site's, {hook.target}" if hook.site else "of Piolet"


def _describe(hook: Installed, kind: type[Hook], settings: config.Config) -> None:
    print(f"    {kind.text}")
    state = ", on in every container here" if hook.name in settings.hooks.always else ""
    print(f'    switched on by {hook.switch} = "true"{state}')
    for name, text in kind.options.items():
        print(f"    {hook.annotation}.{name}: {text}")
    for name, text in kind.settings.items():
        value = settings.hooks.of(hook.name).get(name)
        print(f"    [hooks] options {hook.name}.{name}={value if value is not None else '…'}: {text}")
    if kind.implies:
        print(f"    switches on with it: {', '.join(kind.implies)}")
    if kind.hardware:
        print(f"    untested on hardware: {kind.hardware}")
