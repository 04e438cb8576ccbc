"""Jobs of pyxis and of enroot as definition files: their words are read, never run. Pure.

A script is read line by line, as text: `#SBATCH` lines, and the lines that begin with srun, sbatch, salloc or enroot.
`$NAME` is what the script has set it to, in a line of its own; else it becomes `${NAME}`, which a definition replaces.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from piolet.base.errors import EnvironmentFileError

_PYXIS = "PYXIS_CONTAINER_"
_COMMANDS = ("srun", "sbatch", "salloc", "enroot")
_VARIABLE = re.compile(r"(?<![$\\])\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_FLAGS = frozenset(
    [
        *("ro", "rw", "private", "rprivate", "shared", "rshared", "slave", "rslave"),
        *("bind", "rbind", "nosuid", "nodev", "noexec"),
        *("x-create", "x-create=dir", "x-create=file", "x-create=auto"),
    ]
)


@dataclass
class Converted:
    """The data of a definition file, and sentences about what it does otherwise."""

    data: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def scalar(self, key: str, value: Any) -> None:
        """Set a key; another value of an earlier command is told."""
        if key in self.data and self.data[key] != value:
            self.lost.append(f"{key} is said twice, {self.data[key]!r} and {value!r}: write a file for each")
            return
        self.data[key] = value


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a script that may have options of containers."""
    joined = re.sub(r"\\\n", " ", text)
    assigned: dict[str, str] = {}
    for line in joined.splitlines():
        if line.startswith("#SBATCH"):
            line = "sbatch " + line[len("#SBATCH") :]
        elif line.lstrip().startswith("#"):
            continue
        words = [_replaced(word, assigned) for word in _words(line)]
        match = _ASSIGNMENT.fullmatch(words[-1]) if words and words[:-1] in ([], ["export"]) else None
        if match is not None and "$(" not in match[2] and "`" not in match[2]:
            assigned[match[1]] = match[2]
            if match[1].startswith(_PYXIS):
                yield ["srun", *_of_variable(match[1].removeprefix(_PYXIS), match[2])]
                continue
        starts = [at for at, word in enumerate(words) if word.rpartition("/")[2] in _COMMANDS]
        if starts:
            yield [words[starts[0]].rpartition("/")[2], *words[starts[0] + 1 :]]


def _of_variable(name: str, value: str) -> list[str]:
    """Return the option of pyxis that a variable PYXIS_CONTAINER_NAME stands for; a value that is no truth is none."""
    option = f"container-{name.lower().replace('_', '-')}"
    if option in _WITH_VALUE:
        return [f"--{option}={value}"]
    on, off = value in ("1", "true", "yes", "y"), value in ("0", "false", "no", "n")
    if option == "container-readonly":
        return ["--container-readonly"] if on else ["--container-writable"] if off else []
    if option == "container-writable":
        return ["--container-writable"] if on else ["--container-readonly"] if off else []
    return [f"--{option}"] if on else [f"--no-{option}"] if off else []


def _words(line: str) -> list[str]:
    """Return the words of a line as a shell would, up to a comment; none where it is part of something longer."""
    for text in (line, re.sub(r"\s#.*", "", line)):  # a comment may have a quote that is none
        try:
            words = [word.removesuffix(";") for word in shlex.split(text)]
        except ValueError:
            continue
        ends = [at for at, word in enumerate(words) if word.startswith("#")]
        return words[: ends[0]] if ends else words
    return []


def from_pyxis(found: Sequence[Sequence[str]]) -> Converted:
    """Return what commands with pyxis' options say, of pyxis 0.20. Raises EnvironmentFileError: there are none."""
    made = Converted()
    seen = False
    for words in found:
        for name, value in _options(words):
            seen = True
            _pyxis(made, name, value)
    if not seen:
        raise EnvironmentFileError("there is no option of pyxis in this", "they begin with --container-")
    made.data.setdefault("home", False)
    if "image" not in made.data:
        made.lost.append("no --container-image: write the image of the container that is meant by its name")
    return made


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith(("--container-", "--no-container-")):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals and name in _WITH_VALUE and at < len(words):
            value = words[at]
            at += 1
        yield name, _variables(value)


_WITH_VALUE = frozenset(f"container-{name}" for name in ("image", "mounts", "workdir", "name", "env", "save"))


def _pyxis(made: Converted, name: str, value: str) -> None:
    option, on = name.removeprefix("no-").removeprefix("container-"), not name.startswith("no-")
    if option == "image":
        made.scalar("image", _image(made, value))
    elif option == "mounts":
        made.data.setdefault("mounts", []).extend(_mount(made, one) for one in value.split(",") if one)
    elif option == "workdir":
        made.scalar("workdir", value)
    elif option == "env":
        made.data.setdefault("env", {}).update({one: f"${{{one}}}" for one in value.split(",") if one})
    elif option == "mount-home":
        made.scalar("home", on)
    elif option == "entrypoint":
        made.scalar("entrypoint", on)
    elif option in ("writable", "readonly"):
        made.scalar("writable", on == (option == "writable"))
    elif option == "remap-root":
        made.scalar("remap_root", on)
    elif option == "name":
        name = f"--container-name={value}"
        made.lost.append(f"{name}: a container lives as long as its step; piolet attach JOB.STEP enters it meanwhile")
    elif option == "save":
        made.scalar("save", value if value.endswith(".sqsh") else f"{value}.sqsh")
    else:
        made.lost.append(f"--{name}: has no counterpart")


def from_enroot(found: Sequence[Sequence[str]]) -> Converted:
    """Return what the commands of enroot 3 and 4 say: import, create and start.

    Raises EnvironmentFileError: there is no start.
    """
    made = Converted()
    files: dict[str, str] = {}
    names: dict[str, str] = {}
    started = False
    for words in found:
        words = [_variables(word) for word in words]
        if words[:1] != ["enroot"] or len(words) < 2:
            continue
        verb, options, rest = words[1], *_enroot_options(words[2:])
        if verb == "import" and rest:
            reference = _image(made, rest[0])
            default = re.sub(r".*#", "", rest[0].partition("://")[2]).replace("/", "+").replace(":", "+") + ".sqsh"
            files[dict(options).get("output", default)] = reference
        elif verb == "create" and rest:
            default = rest[0].rpartition("/")[2].removesuffix(".sqsh").removesuffix(".squashfs")
            names[dict(options).get("name", default)] = rest[0]
        elif verb == "start" and rest:
            started = True
            _start(made, options, rest, files, names)
    if not started:
        raise EnvironmentFileError("there is no `enroot start` in this", "give the command, or a script that has it")
    made.data.setdefault("home", False)
    made.data.setdefault("writable", False)
    return made


_ENROOT = {"m": "mount", "e": "env", "c": "conf", "o": "output", "n": "name", "a": "arch"}
_ENROOT_BARE = {"r": "root", "w": "rw", "f": "force"}


def _enroot_options(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        name, equals, value = words[at].lstrip("-").partition("=")
        long = words[at].startswith("--")
        at += 1
        if not long and set(name) <= set(_ENROOT_BARE):
            found += [(_ENROOT_BARE[letter], "") for letter in name]
            continue
        if not long:
            name, rest = _ENROOT.get(name[0], _ENROOT_BARE.get(name[0], name)), name[1:]
            value, equals = (rest, "=") if rest and name in _ENROOT.values() else (value, equals)
        if name in (*_ENROOT.values(), "rc") and not equals and at < len(words):
            value = words[at]
            at += 1
        found.append((name, value))
    return found, [word for word in words[at:] if word != "--"]


def _start(
    made: Converted, options: list[tuple[str, str]], rest: list[str], files: dict[str, str], names: dict[str, str]
) -> None:
    target = rest[0]
    path = names.get(target, target if target.endswith((".sqsh", ".squashfs")) else "")
    if path:
        image = files.get(path, path if path.startswith(("/", "./", "${")) else f"./{path}")
        made.scalar("image", image)
    else:
        made.lost.append(f"the container {target} was made by `enroot create` elsewhere: write its image")
    for name, value in options:
        if name == "mount":
            made.data.setdefault("mounts", []).append(_fstab(made, value))
        elif name == "env":
            variable, equals, text = value.partition("=")
            made.data.setdefault("env", {})[variable] = text if equals else f"${{{variable}}}"
        elif name == "rw":
            made.scalar("writable", True)
        elif name == "root":
            made.scalar("remap_root", True)
        else:
            made.lost.append(f"--{name}{f'={value}' if value else ''}: has no counterpart")


def _fstab(made: Converted, text: str) -> str:
    """Return a mount that is written as a line of fstab, or SRC:DST:FLAGS."""
    fields = text.split()
    if len(fields) < 2:
        return _mount(made, text)
    if len(fields) > 2 and fields[2] == "tmpfs":
        return f"tmpfs:{fields[1]}"
    return _mount(made, ":".join([fields[0], fields[1], *([fields[3]] if len(fields) > 3 else [])]))


def _mount(made: Converted, text: str) -> str:
    """Return a mount with the flags that are ours, too."""
    fields = text.split(":")
    if fields[0] == "tmpfs":
        return ":".join(fields[:2])
    if fields[0] == "umount" and len(fields) > 1:
        return f"!{fields[1]}"
    if len(fields) < 3:
        return text
    flags = [flag for flag in re.split(r"[+,]", ":".join(fields[2:])) if flag]
    other = [flag for flag in flags if flag not in _FLAGS]
    if other:
        made.lost.append(f"the flags {', '.join(other)} of the mount at {fields[1]}")
    kept = "+".join(dict.fromkeys(flag for flag in flags if flag in _FLAGS))
    return ":".join(fields[:2] + ([kept] if kept else []))


def _image(made: Converted, text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "docker":
        made.lost.append(f"the image {text}: images of {scheme} are imported first (piolet image import)")
    return rest if separator else text


def _replaced(text: str, assigned: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: assigned.get(match[1] or match[2], match[0]), text)


def _variables(text: str) -> str:
    """Return `$NAME` as `${NAME}`."""
    return _VARIABLE.sub(lambda match: f"${{{match[1] or match[2]}}}", text)
