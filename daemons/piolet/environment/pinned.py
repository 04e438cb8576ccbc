"""Which definition a job's steps had: `piolet env show JOB`, and `--environment=@JOB`, which uses it again.

When a definition is made, it is kept in the user's cache without the values of secrets, in a file that is called after
the hash of what travels to the nodes. When srun starts a step, its plugin leaves a symbolic link JOB.STEP.CLUSTER.job
there, whose text is that hash (submit.c); it starts no process for it. So what is known of a step is what srun handed
over, image by digest, also where the file has changed since. An srun that joins a job from outside (`--jobid`) does not
know the cluster's name, and neither did releases before this one: they leave JOB.STEP.job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from piolet.base import files
from piolet.base.errors import EnvironmentFileError, PioletError, SlurmError
from piolet.environment import around, later, mounts, secrets
from piolet.environment.definition import LIMIT_BYTES, Definition, canonical_json, from_json
from piolet.environment.expand import escape
from piolet.submission import cache

MARK = "@"
LOOKED_AFTER_S = 86400.0
"""So often a definition is made anew, whatever is kept of it: links come without a process, and it takes one to remove
old ones."""
_ENTRIES = 4096  # links, and definitions: where there are more, the older half of them goes
_UNUSED_S = 86400.0
_NAME_MAX = 100  # of a cluster, as submit.c cuts it
_LONG = 6
_TOGETHER_S = 60.0  # steps that are started side by side
_BEFORE, _AFTER = b"\0", b"\0\0" + b"0\0"
_STEP = re.compile(r"(\d{1,10})(?:\.(\d{1,10}|batch))?")
_LINK = re.compile(r"(\d+)\.(\d+)(?:\.(.*))?\.job", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Pinned:
    """What is known of a step. `definition` lacks the variables `secret`, whose values are kept nowhere.

    began   when srun started it, in seconds since 1970
    """

    step: str
    definition: Definition
    secret: tuple[str, ...]
    began: float = 0.0


@dataclass(frozen=True)
class _Link:
    """What srun left of a step; `cluster` is '' where a release did that which did not say it."""

    path: str
    job: int
    step: int
    cluster: str


def hash_of(definition: bytes) -> str:
    """Return what the plugin calls a definition: `record_key` of message.c, of the definition alone."""
    return f"{cache.fnv1a(_BEFORE + definition + _AFTER):016x}"


def keep(variables: Mapping[str, str], front: bytes, definition: Definition, values: Iterable[str] = ()) -> None:
    """Keep a definition without its secrets for `find`; where that cannot be, nothing is.

    front   what travels in front of it, for batch scripts
    values  secrets of the host that the definition was made with; a variable that has one in it is a secret as well
    """
    folder = files.cache_directory(variables, "env")
    if folder is None:
        return
    own = (value for name, value in definition.set_env.items() if secrets.is_secret(name))
    known = {value for value in (*values, *own) if len(value) >= _LONG}  # a short one is in everything
    hidden = sorted(
        name
        for name, value in definition.set_env.items()
        if secrets.is_secret(name) or any(one in value for one in known)
    )
    shown = {name: value for name, value in definition.set_env.items() if name not in hidden}
    text = replace(definition, set_env=shown).to_json().decode()
    if any(one in text or json.dumps(one)[1:-1] in text for one in known):
        return
    value = {"secret": hidden, "definition": text}
    path = os.path.join(folder, f"{hash_of(front + definition.to_json())}.def")
    aside = f"{folder}/.new-{os.getpid()}-{time.monotonic_ns()}"
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        files.write_whole(path, canonical_json(value), aside, mode=0o600, exclusive=True)
        _prune(folder)


def find(variables: Mapping[str, str], job: str, ask: Callable[[Mapping[str, str]], str] | None = None) -> list[Pinned]:
    """Return what is known of a job's steps, in order, or of the step JOB.STEP. Raises EnvironmentFileError.

    ask   tells the cluster's name, '' where that is not to be had; it is asked only where a job of that number is known
    """
    match = _STEP.fullmatch(job)
    if match is None:
        raise EnvironmentFileError(f"'{job[:40]}' is neither a job nor a step", "write 1234 or 1234.0")
    folder = files.cache_directory(variables, "env")
    of_job = list(_links(folder, f"{int(match[1])}.")) if folder else []
    what = f"{'step' if match[2] else 'job'} {job}"
    links = _here(of_job, what, lambda: (ask or own_cluster)(variables))
    wanted = sorted((link.step, link.path) for link in links if match[2] in (None, str(link.step)))
    found = [one for step, path in _of_one_job(wanted) if (one := _read(path, f"{match[1]}.{step}")) is not None]
    if not found:
        others = ", ".join(sorted({_comment(link.cluster) for link in of_job if link.cluster} if not links else ()))
        raise EnvironmentFileError(
            f"nothing is known of the environment of {what}{' on this cluster' if others else ''}",
            f"there is one of that number on {others}: ask there"
            if others
            else f"srun keeps it when it starts a step with --environment, for you, in {folder or 'your cache'}",
        )
    return found


def own_cluster(variables: Mapping[str, str]) -> str:
    """Return the name of the cluster whose jobs are meant, as a job's environment or Slurm says it, or ''."""
    from piolet.slurm import cluster

    try:
        return variables.get("SLURM_CLUSTER_NAME") or cluster.cluster().name
    except SlurmError:
        return ""


def _here(links: Sequence[_Link], what: str, ask: Callable[[], str]) -> list[_Link]:
    """Return those of this cluster's job: of its name, and those without a name where no other cluster has such a job,
    or where none is of its name.
    """
    named = {link.cluster for link in links if link.cluster}
    own = ask()[:_NAME_MAX] if named else ""
    if named and not own:
        if len(named) > 1:
            raise EnvironmentFileError(
                f"{what} is one of each of the clusters {', '.join(map(_comment, sorted(named)))}, and Slurm does not "
                "say which one this is",
                "set SLURM_CLUSTER_NAME to the one that is meant",
            )
        own = named.pop()
    of_own = [link for link in links if link.cluster == own]
    unnamed = [link for link in links if not link.cluster]
    if not of_own or named != {own}:
        return of_own or unnamed
    steps = {link.step for link in of_own}
    return of_own + [link for link in unnamed if link.step not in steps]


def _of_one_job(links: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Leave out steps that began before one with a smaller number: they are of an earlier run or job of that number."""
    latest = 0.0
    for step, path in links:
        with contextlib.suppress(OSError):
            began = os.lstat(path).st_mtime
            if began >= latest - _TOGETHER_S:
                yield step, path
                latest = max(latest, began)


def again(variables: Mapping[str, str], request: str) -> tuple[Definition, tuple[str, ...]]:
    """Return the definition that `@JOB` or `@JOB.STEP` means, and its secrets' names; raises EnvironmentFileError."""
    found = [one for one in find(variables, request.removeprefix(MARK)) if not one.definition.attach]
    if not found:
        raise EnvironmentFileError(f"the steps of {request} were in containers of others", "name the step that had it")
    if any(one.definition != found[0].definition for one in found):
        steps = ", ".join(f"{MARK}{one.step}" for one in found[:5])
        raise EnvironmentFileError(f"the steps of {request} had different environments", f"name one of them: {steps}")
    # What it was saved as is there by now, and is that job's.
    return replace(found[0].definition, request=request, save=None), found[0].secret


def _read(link: str, step: str) -> Pinned | None:
    try:
        name = os.readlink(link)
        if not _HASH.fullmatch(name):
            return None
        value: Any = json.loads(files.read_small(f"{os.path.dirname(link)}/{name}.def", 2 * LIMIT_BYTES)[0])
        definition = from_json(value["definition"].encode())
        return Pinned(step, definition, tuple(str(name) for name in value["secret"]), os.lstat(link).st_mtime)
    except (
        OSError,
        files.NotRegularError,
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        PioletError,
        AttributeError,
    ):
        return None  # it is gone, or of another release


def _links(folder: str, begin: str = "") -> Iterator[_Link]:
    """Yield the links whose names begin with this; there may be thousands of others."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(begin) and (match := _LINK.fullmatch(name)) and entry.is_symlink():
                yield _Link(entry.path, int(match[1]), int(match[2]), match[3] or "")


def _prune(folder: str) -> None:
    """Remove the older half of the links when there are too many, and definitions that none leads to any more."""
    names = os.listdir(folder)
    definitions = [name for name in names if name.endswith(".def")]
    if max(len(definitions), sum(name.endswith(".job") for name in names)) <= _ENTRIES:
        return
    aged = sorted((os.lstat(link.path).st_mtime_ns, link.path) for link in _links(folder))
    if len(aged) > _ENTRIES:
        for _, path in aged[: len(aged) - _ENTRIES // 2]:
            os.unlink(path)
        aged = aged[len(aged) - _ENTRIES // 2 :]
    used = {f"{os.readlink(path)}.def" for _, path in aged}
    for name in definitions:
        path = os.path.join(folder, name)
        # One that is new may be of a step that is about to start.
        if name not in used and time.time() - os.lstat(path).st_mtime > _UNUSED_S:
            os.unlink(path)


def text(pinned: Pinned) -> str:
    """Return what is known of a step as a definition file, line end included: the image by its digest."""
    definition, lines = (
        pinned.definition,
        [f"# step {pinned.step}, --environment={_comment(pinned.definition.request)}"],
    )
    lines += [f"# from {_comment(path)}" for path in definition.files]
    image = definition.image
    if definition.attach:
        return "\n".join([*lines, f"# in the container of step {definition.attach}"]) + "\n"
    if image is None:
        lines.append("# no image: the step ran on the host")
    else:
        lines.append(f"image = {_string(pinned_name(definition))}")
        if image.digest is None:
            lines.append("# the image is a file of yours: what is in it now may be something else")
        if definition.workdir is not None and definition.workdir_given:
            lines.append(f"workdir = {_string(definition.workdir)}")
        lines.append(f"entrypoint = {str(bool(definition.entrypoint)).lower()}")
        lines.append(f"writable = {str(definition.writable).lower()}")
        lines += ["remap_root = true"] if definition.remap_root else []
        if definition.home is not None:
            lines.append(f"home = {str(definition.home).lower()}")
        places = [f"!{place}" for place in definition.dropped] + list(map(mounts.unparse, definition.mounts))
        lines.append(f"mounts = [{', '.join(map(_string, places))}]")
        lines.append(f"devices = [{', '.join(map(_string, definition.devices))}]")
    saved, before = around.described(definition)
    lines += [f"save = {_string(one)}" for one in saved]
    lines += ["", f"[{around.TABLE}]"] if before else []
    for key, value in before:
        shown = _string(value) if isinstance(value, str) else f"[{', '.join(map(_string, value))}]"
        lines.append(f"{key} = {shown}")
    lines += ["", "[env]", *(f"{_key(name)} = {_string(value)}" for name, value in definition.set_env.items())]
    lines += [f"# {_comment(name)} was set, and its value is not kept" for name in pinned.secret]
    lines += [f'{_key(name)} = ""' for name in definition.unset_env if not name.startswith("LC_")]
    if definition.annotations:
        lines += ["", "[annotations]"]
        lines += [f"{_key(name)} = {_string(str(value))}" for name, value in definition.annotations.items()]
    return "\n".join(lines) + "\n"


def pinned_name(definition: Definition) -> str:
    """Return how a definition's image is called so that it is that one again: by digest, or by its path."""
    image = definition.image
    assert image is not None
    if image.digest is None:
        return image.path or image.reference
    name = image.reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return f"{head if colon and '/' not in tag else name}@{image.digest}"


def _comment(words: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in words)


def _string(words: str) -> str:
    return json.dumps(later.written(escape(words)), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
