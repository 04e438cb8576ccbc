"""Which file `--environment=REQUEST` or an entry of `base_environment` means.

    /a/x        the file itself
    ./x, a/x    relative to the working directory
    x.toml      in the working directory, then like a bare name
    x           x.toml, then x, in each directory of EDF_PATH (default ~/.edf), then of the site

Every place that was looked at in vain is noted, as a file that turns up there changes the answer.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator

from piolet.base.errors import EnvironmentFileError
from piolet.base.nearest import nearest
from piolet.submission.dependencies import Host

_NAMES_LIMIT = 5000
_FRONT = re.compile(r"(?:~|\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\})(?=/)")


def find(request: str, host: Host, site_path: Iterable[str]) -> str:
    """Return the absolute path of the file that `request` means; whether it can be read is not looked at.

    Raises EnvironmentFileError: nothing there; says where was looked and the nearest name that exists.
    """
    if not request:
        raise EnvironmentFileError("the name of the environment is empty", "give a file or a name")
    if "\0" in request or any("\ud800" <= c <= "\udfff" for c in request):
        raise EnvironmentFileError("the name of the environment is not UTF-8 text without NUL bytes")
    if "/" in request:
        path = host.absolute(request)
        if _exists(path):
            return path
        whole = _as_a_shell(request, host)
        if whole is not None:
            raise EnvironmentFileError(
                f"there is no file {request}: neither '~' nor a variable is replaced there, nor in an #SBATCH line",
                f"write {whole}",
            )
        raise EnvironmentFileError(f"the environment file {path} does not exist", _path_hint(path))
    directories = _directories(host, site_path)
    local = [host.absolute(request)] if request.endswith(".toml") else []
    for path in itertools.chain(local, _candidates(request, directories)):
        if _exists(path) and not os.path.isdir(path):
            return path
        host.absent(path)
    places = ([host.cwd] if local else []) + directories
    raise EnvironmentFileError(
        f"there is no environment '{request}' in {', '.join(places) or 'any directory (EDF_PATH and HOME are unset)'}",
        _name_hint(request, directories, host.cwd, local),
    )


def _directories(host: Host, site_path: Iterable[str]) -> list[str]:
    value = host.variable("EDF_PATH")
    if value:
        own = [part for part in value.split(":") if part]
    else:
        home = host.variable("HOME")
        own = [f"{home}/.edf"] if home else []
    for directory in own:
        if not directory.startswith("/"):
            raise EnvironmentFileError(
                f"EDF_PATH holds the relative directory '{directory}'", "its directories are absolute paths"
            )
    return [*own, *site_path]


def _candidates(name: str, directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        if not name.endswith(".toml"):
            yield os.path.join(directory, name + ".toml")
        yield os.path.join(directory, name)


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise EnvironmentFileError(f"cannot look at {path}: {error.strerror}") from None
    return True


def _name_hint(request: str, directories: list[str], cwd: str, local: list[str]) -> str | None:
    stem = request.removesuffix(".toml")
    here = [name for name in (f"{request}.toml", request) if not local and os.path.isfile(os.path.join(cwd, name))]
    if here:
        return f"a file in the working directory is named with a slash: ./{here[0]}"
    known = [name.removesuffix(".toml") for directory in directories for name in _names(directory)]
    if local:
        known += [name.removesuffix(".toml") for name in _names(cwd) if name.endswith(".toml")]
    near = nearest(stem, known)
    return f"did you mean '{near}{'.toml' if local else ''}'?" if near else None


def _as_a_shell(request: str, host: Host) -> str | None:
    """Return the path that a shell would make of a request with '~' or `$NAME` in front; None: there is neither."""
    match = _FRONT.match(request)
    if match is None:
        return None
    name = match[1] or match[2] or "HOME"
    value = host.variable(name)
    return f"{value}{request[match.end() :]}" if value else "the whole path"


def _path_hint(path: str) -> str | None:
    near = path + ".toml" if is_regular(path + ".toml") else nearest_path(path)
    return f"did you mean {near}?" if near else None


def nearest_path(path: str) -> str | None:
    """Return an existing path that is spelt like `path`, which does not exist, or None.

    Looks only into the deepest directory of `path` that exists.
    """
    parent, name = os.path.split(path)
    while parent != "/" and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    names = _names(parent)
    stem, ending = os.path.splitext(name)
    if ending and any(one.endswith(ending) for one in names):  # an ending that many have makes no two names alike
        near = nearest(stem, (one.removesuffix(ending) for one in names if one.endswith(ending)))
        return os.path.join(parent, near + ending) if near else None
    near = nearest(name, names)
    return os.path.join(parent, near) if near else None


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in itertools.islice(entries, _NAMES_LIMIT)]
    except OSError:
        return []


def is_regular(path: str) -> bool:
    """Return whether `path` is a regular file, links followed."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
