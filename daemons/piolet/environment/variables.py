"""The variables of a container: the host's, the image's and those of [env], and what of the host's stays outside."""

from __future__ import annotations

import re
from collections.abc import Iterable

from piolet.environment import edf, expand, later
from piolet.environment.layer import Entry, Layer
from piolet.environment.problems import Problems
from piolet.images.info import ImageInfo
from piolet.submission.dependencies import Host

# The user's own, whatever the image was built with.
_USER_VARIABLES = frozenset(("HOME", "USER", "LOGNAME", "SHELL"))
# What stays with env_policy = "clean": whose the step is, its terminal, and what Slurm sets for its tasks.
_KEPT_PREFIXES = ("SLURM", *edf.STEP_PREFIXES)
_KEPT = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "SHELL", "TERM", "HOSTNAME", "TMPDIR", "TZ", "PATH", "DISPLAY", "XAUTHORITY"),
        *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"),
    )
)
# The host's locale is often not in the image. The list is fixed, so that the definition does not depend on the host.
_LOCALE = (
    *("LANG", "LANGUAGE", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION", "LC_MEASUREMENT"),
    *("LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER", "LC_TELEPHONE", "LC_TIME"),
)
# $NAME and $(, unless doubled, and a ~ where a path begins.
_FOR_A_SHELL = re.compile(r"(?<!\$)\$(?:[A-Za-z_][A-Za-z0-9_]*|\()|(?:^|(?<=:))~(?=/|:|$)")


def image_environment(info: ImageInfo | None) -> dict[str, str]:
    """Return the variables that a container takes from its image."""
    env = info.env if info else {}
    return {n: v for n, v in env.items() if n not in _USER_VARIABLES and not n.startswith(edf.STEP_PREFIXES)}


def of_container(
    layer: Layer, host: Host, info: ImageInfo | None, warnings: list[str], problems: Problems
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what image and [env] set, and what is unset. `problems` gets a value that cannot be expanded."""
    from_image = image_environment(info)
    set_env = dict(from_image)
    unset: dict[str, None] = {}
    for name, entry in layer.env.items():
        value = ""
        with problems.gather():
            value = edf.expand_entry(entry, host, {**from_image, **later.MARKS})
        _warn_of_shell(entry, warnings)
        if value:
            set_env[name] = value
        else:
            set_env.pop(name, None)
            unset[name] = None
    if info is not None:
        unset.update((name, None) for name in _LOCALE if name not in set_env)
    return set_env, tuple(unset)


def outside(host: Host, always: Iterable[str], set_env: dict[str, str], *, clean: bool) -> tuple[str, ...]:
    """Return the names of the host's variables that a container does not get."""
    names = [*always]
    if clean:
        names += [name for name in host.variables if name not in _KEPT and not name.startswith(_KEPT_PREFIXES)]
    return tuple(name for name in names if name not in set_env and expand.is_utf8(name))


def _warn_of_shell(entry: Entry, warnings: list[str]) -> None:
    """Warn of what a shell would replace in a value, and we do not."""
    match = _FOR_A_SHELL.search(entry.text)
    if match is None:
        return
    written = match[0]
    hint = "write ${HOME}"
    if written.startswith("$("):
        hint = "no command is run; set it in the job's script"
    elif written.startswith("$"):
        name = written[1:]
        hint = f"write ${{{name}}}, or $${{{name}}} for the characters themselves"
        if name.startswith(edf.STEP_PREFIXES):
            hint = "it is known when the step begins: set the variable in the job's script"
    place = entry.locate()
    what = f"'{written}' in {entry.name} stays as it is, as no shell reads it"
    warnings.append(f"{place.path}:{place.line}: {what} ({hint})")
