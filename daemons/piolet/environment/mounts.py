"""The grammar of `mounts`, and how a list of mounts becomes one in which none hides another.

    SRC[:DST[:FLAGS]]    tmpfs:DST[:FLAGS]    "!DST" drops an inherited mount

Pure: whether a source exists is looked at elsewhere. `\\:` is a colon in a path, `\\\\` a backslash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from piolet.base.errors import EnvironmentFileError
from piolet.environment import words
from piolet.environment.definition import Mount
from piolet.submission.dependencies import squeeze

_GROUPS = (
    ("ro", "rw"),
    ("private", "rprivate", "shared", "rshared", "slave", "rslave"),
    ("bind", "rbind"),
)
NODE, OPTIONAL = "node", "optional"
"""Flags of a source that is looked for on the node alone: it has to be there, or is left out where it is not."""
_ONE_SOURCE = ("bind", "rbind", "sqsh", NODE, OPTIONAL)
CREATE = "x-create"
"""Has a missing mount point made in what is mounted above it; without it nothing is made there."""
_CREATE_KINDS = {f"{CREATE}={kind}": CREATE for kind in ("auto", "dir", "file")}  # enroot's; the source's kind decides
FLAGS = (*(flag for group in _GROUPS for flag in group), "nosuid", "nodev", "noexec", "sqsh", CREATE, NODE, OPTIONAL)

_FIELD = re.compile(r"(?:[^\\:]|\\.|\\$)*", re.DOTALL)


def parse(text: str) -> Mount:
    """Return the mount that `text` describes; a relative source stays as it is.

    Raises EnvironmentFileError without a place, which the caller adds.
    """
    fields = _split(text)
    if fields[0] == "tmpfs" and len(fields) > 1:
        return _tmpfs(fields)
    if len(fields) > 3:
        raise EnvironmentFileError(
            f"a mount has at most three parts, SRC:DST:FLAGS, and this one has {len(fields)}",
            "a colon in a path is written '\\:' (in TOML text in single quotes, or '\\\\:' in double quotes)",
        )
    source = fields[0]
    if not source:
        raise EnvironmentFileError("the source of the mount is empty")
    flags = parse_flags(fields[2]) if len(fields) == 3 else ()
    destination = parse_destination(fields[1]) if len(fields) > 1 else ""
    kind = "sqsh" if "sqsh" in flags else "bind"
    if kind == "sqsh" and not destination:
        raise EnvironmentFileError("a SquashFS file needs a destination", "SRC:DST:sqsh")
    return Mount(source, destination, kind, tuple(flag for flag in flags if flag != "sqsh"))


def _tmpfs(fields: list[str]) -> Mount:
    if len(fields) > 3:
        raise EnvironmentFileError(f"a tmpfs has at most three parts, tmpfs:DST:FLAGS, and this one has {len(fields)}")
    flags = parse_flags(fields[2]) if len(fields) == 3 else ()
    for flag in flags:
        if flag in _ONE_SOURCE:
            raise EnvironmentFileError(f"the flag '{flag}' means nothing for a tmpfs")
    return Mount("", parse_destination(fields[1]), "tmpfs", flags)


def _split(text: str) -> list[str]:
    fields, pos = [], 0
    while True:
        match = _FIELD.match(text, pos)
        assert match is not None  # it matches the empty string
        fields.append(unquote(match[0]))
        if match.end() == len(text):
            return fields
        pos = match.end() + 1


def quote(path: str) -> str:
    """Return `path` as it is written in a mount."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def unquote(text: str) -> str:
    """Return the path that `quote` made `text` from."""
    return re.sub(r"\\([\\:])", r"\1", text)


def unparse(mount: Mount) -> str:
    """Return the text that `parse` makes this mount from."""
    flags = (*(("sqsh",) if mount.kind == "sqsh" else ()), *mount.flags)
    fields = ["tmpfs" if mount.kind == "tmpfs" else quote(mount.source), quote(mount.destination)]
    return ":".join(fields + (["+".join(flags)] if flags else []))


def parse_flags(text: str) -> tuple[str, ...]:
    """Return the flags in `text`, joined by `+` or `,`, each once. Raises EnvironmentFileError."""
    flags = tuple(dict.fromkeys(_CREATE_KINDS.get(flag, flag) for flag in re.split(r"[+,]", text)))
    for flag in flags:
        if flag not in FLAGS:
            hint = words.of_flag(flag, FLAGS) or f"the flags are {', '.join(FLAGS)}"
            raise EnvironmentFileError(f"unknown mount flag '{flag[:60]}'", hint)
    for group in _GROUPS:
        both = [flag for flag in flags if flag in group]
        if len(both) > 1:
            raise EnvironmentFileError(f"the mount flags '{both[0]}' and '{both[1]}' exclude each other")
    return flags


def parse_destination(text: str) -> str:
    """Return the destination without `//` and `/./`. Raises EnvironmentFileError."""
    if not text.startswith("/"):
        hint = None
        if text and all(flag in FLAGS for flag in re.split(r"[+,]", text)):
            hint = f"flags are the third part: SRC:DST:{text}"
        elif text.startswith("./"):
            hint = "only the source may be relative to the working directory"
        raise EnvironmentFileError(f"the destination '{text[:200]}' of the mount is not an absolute path", hint)
    if ".." in text.split("/"):
        raise EnvironmentFileError(f"the destination '{text[:200]}' of the mount holds '..'")
    path = squeeze(text)
    if path == "/":
        raise EnvironmentFileError("the destination of a mount must not be '/'", "the root file system is the image")
    return path


def arrange(mounts: Iterable[Mount]) -> list[Mount]:
    """Return the mounts in the order in which they are made, one for each destination.

    The later of two with one destination wins. The order is kept, but for a mount above another,
    which goes in front of it, as it would hide it otherwise.
    """
    result: list[Mount] = []
    for mount in mounts:
        if mount in result:
            continue
        result = [other for other in result if other.destination != mount.destination]
        below = mount.destination + "/"
        index = next((i for i, other in enumerate(result) if other.destination.startswith(below)), len(result))
        result.insert(index, mount)
    return result
