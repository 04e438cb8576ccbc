"""Which hooks the annotations of a definition ask for, with which options, and what is wrong with them.

Pure, but for the files of the site's hooks, which are loaded when a definition names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from piolet.api import Asked, Hook, Refused
from piolet.base.errors import EnvironmentFileError
from piolet.base.nearest import nearest
from piolet.hooks.catalogue import BrokenHookError, Catalogue, Installed
from piolet.hooks.settings import HooksConfig

_PREFIXES = ("com.hooks.", "com.pyxis.", "com.sarus.")
_HOOK = re.compile(r"com\.(?:hooks|pyxis|sarus)\.[^.]+")
Load = Callable[[Installed], type[Hook]]

_SWITCHES = ("enabled", "required")


@dataclass(frozen=True)
class Wanted:
    """A hook that is on. `named`: by the definition, and not by the site or by another hook."""

    hook: Installed
    options: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    named: bool = True


@dataclass(frozen=True)
class Reading:
    """What annotations say. `unknown` are the prefixes of hooks that are not there; `required` those that must be."""

    wanted: tuple[Wanted, ...]
    unknown: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def read(annotations: Mapping[str, str], installed: Mapping[str, Installed], always: Iterable[str]) -> Reading:
    """Return what a definition asks for; `always` are the names of hooks that are on unless switched off."""
    options: dict[str, dict[str, str]] = {}
    unknown: dict[str, None] = {}
    for name, value in annotations.items():
        if not name.startswith(_PREFIXES):
            continue
        match = _HOOK.match(name)
        prefix = match[0] if match else name
        options.setdefault(prefix, {})[name[len(prefix) + 1 :]] = value
        if prefix not in installed:
            unknown[prefix] = None
    wanted, idle = [], []
    by_name = {hook.name: hook for hook in installed.values()}
    on = [by_name[name].annotation for name in always if name in by_name]
    for prefix in dict.fromkeys([*on, *options]):
        hook = installed.get(prefix)
        if hook is None:
            continue
        given = options.get(prefix, {})
        switch = annotations.get(hook.switch)
        if switch == "true" or (switch is None and prefix in on):
            own = {key: value for key, value in given.items() if key and key not in _SWITCHES}
            wanted.append(Wanted(hook, own, given.get("required") == "true", switch == "true"))
        elif switch is None:
            idle.append(prefix)
    off = {prefix for prefix in unknown if options[prefix].get("enabled") == "false"}
    missing = tuple(prefix for prefix in unknown if prefix not in off)
    required = tuple(prefix for prefix in missing if options[prefix].get("required") == "true")
    return Reading(tuple(wanted), missing, required, tuple(idle))


def asked(
    wanted: Wanted,
    kind: type[Hook],
    environment: Mapping[str, str],
    annotations: Mapping[str, str],
    config: HooksConfig,
) -> Asked:
    """Return what a hook is given."""
    return Asked(wanted.options, site_options(kind, config), environment, annotations)


def site_options(kind: type[Hook], config: HooksConfig) -> dict[str, str]:
    """Return the site's options that a hook may see: its own, and those of the hooks that it reads."""
    return {key: value for name in (*kind.reads, kind.name) for key, value in config.of(name).items()}


def check(annotations: Mapping[str, str], environment: Mapping[str, str], config: HooksConfig) -> list[str]:
    """Look at a definition when it is submitted; return warnings. Raises EnvironmentFileError."""
    if not any(name.startswith(_PREFIXES) for name in annotations):
        return []
    catalogue = Catalogue(config.directory)
    installed = catalogue.installed()
    found = read(annotations, installed, ())
    for prefix in found.required:
        raise EnvironmentFileError(f"the hook {prefix} is required and not installed here", _there(prefix, installed))
    warnings = [f"{_what(prefix)} is not {_known(prefix)} here; ignored" for prefix in found.unknown]
    warnings += [
        f'{prefix} has options but is not switched on: {installed[prefix].switch} is not "true"'
        for prefix in found.idle
        if prefix != "com.hooks.netstack"  # its options are for other hooks
    ]
    for wanted in found.wanted:
        try:
            kind = catalogue.load(wanted.hook)
            check_options(kind, asked(wanted, kind, environment, annotations, config), wanted)
        except BrokenHookError as error:
            if wanted.required:
                raise EnvironmentFileError(error.message, error.hint) from None
            warnings.append(f"{error.message}; the hook is left out")
    return warnings


def check_options(kind: type[Hook], given: Asked, wanted: Wanted) -> None:
    """Have a hook look at its options. Raises EnvironmentFileError."""
    prefix = wanted.hook.annotation
    for name in given.options:
        if name not in kind.options:
            near = nearest(name, kind.options)
            there = ", ".join(kind.options) or "none besides enabled and required"
            hint = f"did you mean '{near}'?" if near else f"its options are {there}"
            raise EnvironmentFileError(f"the hook {prefix} has no option '{name[:80]}'", hint)
    try:
        kind().check(given)
    except Refused as error:
        raise EnvironmentFileError(f"{prefix}: {error}", error.hint or None) from None


def with_implied(wanted: Iterable[Wanted], load: Load, installed: Mapping[str, Installed]) -> list[Wanted]:
    """Return the hooks, and those that they have switched on with them. Raises what `load` raises."""
    result = {one.hook.name: one for one in wanted}
    by_name = {hook.name: hook for hook in installed.values()}
    left = list(result.values())
    while left:
        one = left.pop(0)
        for name in load(one.hook).implies:
            if name not in result and name in by_name:
                result[name] = Wanted(by_name[name], required=one.required, named=False)
                left.append(result[name])
            elif name in result and one.required and not result[name].required:
                result[name] = replace(result[name], required=True)
    return list(result.values())


def _what(prefix: str) -> str:
    return f"the hook {prefix}" if prefix.startswith("com.hooks.") else f"the annotation {prefix}"


def _known(prefix: str) -> str:
    return "installed" if prefix.startswith("com.hooks.") else "known"


def _there(prefix: str, installed: Mapping[str, Installed]) -> str:
    near = nearest(prefix, installed)
    return f"did you mean {near}?" if near else "piolet hooks list shows those that are"
