"""What `enroot import` writes into an image about its configuration: read, and never run. Pure.

    /etc/environment   the image's variables, one a line
    /etc/rc            a shell script: its working directory, its entrypoint, its command
    /etc/rc.local      sourced by /etc/rc; empty but for comments
    /etc/fstab         its volumes, each mounted on itself

Their forms are those of enroot's src/docker.sh (docker::configure) and src/common.sh (envfmt). What is not of these
forms is told of, and not guessed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

FILES = ("etc/environment", "etc/rc", "etc/rc.local", "etc/fstab")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"([\"'])(.*)[\"']\s*")
_WORKDIR = re.compile(r'cd "([^"$`\\]+)"(?: && unset OLDPWD)?(?: \|\| exit 1)?')
_WITH_ARGUMENTS = re.compile(r'exec (.*)"\$@"')
# Lines of the script that say nothing of their own.
_FRAME = re.compile(
    r'mkdir -p "[^"]*" 2> /dev/null|if \[ -s /etc/rc\.local \]; then|\. /etc/rc\.local|if \[ \$# -gt 0 \]; then'
    r"|else|fi|exec .*"
)


@dataclass(frozen=True)
class Configuration:
    """What was read: as in an image's own configuration.

    notes     clauses that say what was found where
    warnings  sentences about what is there and has no effect
    """

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read(files: Mapping[str, str], image: str) -> Configuration:
    """Return what the `files` (FILES, as far as they are there) say of the image, which warnings call `image`."""
    notes: list[str] = []
    warnings: list[str] = []
    env = tuple(_variables(files.get("etc/environment", "")))
    if env:
        notes.append(f"{len(env)} variables are from its /etc/environment")
    workdir, entrypoint = _script(files.get("etc/rc", ""), image, notes, warnings)
    if any(_lines(files.get("etc/rc.local", ""))):
        warnings.append(f"{image}: its /etc/rc.local is a script, which is not run; enroot would source it")
    for source, target in _mounts(files.get("etc/fstab", "")):
        if source == target:
            notes.append(f"its /etc/fstab makes a volume of {target}, which needs no mount here")
        else:
            warnings.append(
                f"{image}: its /etc/fstab mounts {source} at {target}, which is not done; "
                f'write "{source}:{target}" in mounts'
            )
    return Configuration(env, entrypoint, workdir, tuple(notes), tuple(warnings))


def write(
    env: Iterable[str], entrypoint: tuple[str, ...], workdir: str | None, image: str
) -> tuple[dict[bytes, bytes], list[str]]:
    """Return the files that say so, by path, and sentences about what they cannot say of the image `image`.

    Nothing is returned of an image that says nothing: what is in it then stays.
    """
    warnings: list[str] = []
    lines, script = [], ""
    for entry in env:
        name, _, value = entry.partition("=")
        if not _NAME.fullmatch(name) or name.startswith("ENROOT_") or len(entry.splitlines()) > 1:
            warnings.append(f"{image}: its variable {name} cannot be kept in a file of this kind")
            continue
        lines.append(f'{name}="{value}"\n' if _QUOTED.fullmatch(value) or value != value.strip() else f"{entry}\n")
    if workdir:
        line = f'cd "{workdir}" && unset OLDPWD || exit 1'
        if _WORKDIR.fullmatch(line):
            script += f'mkdir -p "{workdir}" 2> /dev/null\n{line}\n\n'
        else:
            warnings.append(f"{image}: its working directory cannot be kept in a file of this kind")
    # As enroot quotes, which is not as shlex does.
    words = " ".join("'{}'".format(word.replace("'", "'\\''")) for word in entrypoint)
    if "\n" in words or _words(words) != entrypoint:
        warnings.append(f"{image}: its entrypoint cannot be kept in a file of this kind")
        words = ""
    if script or words:
        words = f"{words} " if words else ""
        script = f'{script}if [ $# -gt 0 ]; then\n    exec {words}"$@"\nelse\n    exec {words}/bin/sh\nfi\n'
    found = {b"etc/environment": "".join(lines), b"etc/rc": script}
    return {path: text.encode("utf-8", "surrogateescape") for path, text in found.items() if text}, warnings


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if (line := line.strip()) and not line.startswith("#"):
            yield line


def _variables(text: str) -> Iterator[str]:
    """Yield NAME=VALUE as enroot takes it: without quotes around, and none of enroot's own."""
    for line in text.splitlines():
        name, equals, value = line.lstrip().partition("=")
        if equals and _NAME.fullmatch(name) and not name.startswith("ENROOT_"):
            match = _QUOTED.fullmatch(value)
            yield f"{name}={match[2] if match else value}"


def _script(text: str, image: str, notes: list[str], warnings: list[str]) -> tuple[str | None, tuple[str, ...]]:
    workdir: str | None = None
    entrypoint: tuple[str, ...] = ()
    for line in _lines(text):
        if match := _WORKDIR.fullmatch(line):
            workdir = match[1]
            notes.append(f"the working directory {workdir} is from its /etc/rc")
        elif match := _WITH_ARGUMENTS.fullmatch(line):
            words = _words(match[1])
            if words is None:
                warnings.append(f"{image}: the entrypoint in its /etc/rc cannot be read: {_short(line)}")
            elif words:
                entrypoint = words
                notes.append(f"the entrypoint {shlex.join(words)} is from its /etc/rc")
        elif not _FRAME.fullmatch(line):
            warnings.append(f"{image}: its /etc/rc is not as enroot writes it, and is not run: {_short(line)}")
            break
    return workdir, entrypoint


def _words(text: str) -> tuple[str, ...] | None:
    """Return the words that the shell would make of `text`, if they are plain or in single quotes."""
    if re.search(r"[$`\"]", re.sub(r"'[^']*'|\\'", "", text)) or "$'" in text:
        return None
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return None


def _mounts(text: str) -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        fields = line.split()
        if len(fields) >= 3 and fields[1].startswith("/") and fields[1] != "/":
            yield fields[0].replace("${ENROOT_ROOTFS}", "", 1), fields[1]


def _short(line: str) -> str:
    return line if len(line) <= 80 else line[:77] + "..."
