"""The rendered definition: what an EDF means, once and for all, decided at submit time.

Canonical JSON travels with the launch to every node. Nodes never read TOML, never expand again and
never look at the user's file. The same definition always has the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from piolet.base.errors import PioletError
from piolet.images.info import Image
from piolet.images.reference import is_digest
from piolet.steps import identity

VERSION = 1
PATH_MAX = 4095
LIMIT_BYTES = 96 * 1024
"""A definition travels in one environment variable, which Linux limits to 128 KiB, and in one message."""


@dataclass(frozen=True)
class Mount:
    """One mount, both ends absolute and expanded. `kind` is 'bind', 'sqsh' or 'tmpfs' (then source is '')."""

    source: str
    destination: str
    kind: str = "bind"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Startup:
    """Commands for /bin/sh in the container before its tasks: on each node, or once in a job; `per`: 'node', 'job'."""

    commands: tuple[str, ...]
    per: str
    timeout_s: float


@dataclass(frozen=True)
class Save:
    """What the container is saved as when its tasks have ended: a file, or a name in the site's store or in `store`.

    The rest is what the image that it had says of itself.
    """

    file: str = ""
    name: str = ""
    store: str = ""
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    workdir: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A definition with everything resolved.

    request      what the user wrote after --environment=
    files        the EDF files that were merged, base first, absolute paths
    image        None: the step runs on the host and only `env` applies
    workdir      absolute path in the container: that of the files if `workdir_given`, else the image's; or None
    chdir        srun's --chdir, absolute, or None: without a workdir of the files tasks start there if it is there
    entrypoint   the command that goes in front of the user's; empty when there is none to run
    home         whether the home directory is mounted, or None: as the site says
    dropped      destinations at which what every container has is left out
    set_env      variables of the image and of [env] after expansion, the latter winning
    unset_env    variables that [env] unsets, in order
    remap_root   the user is root in the container; nodes of an earlier release are not told of it unless it is so
    attach       the step, JOB.STEP or JOB alone, whose container the tasks enter (attach.py), or ''; told likewise. The
                 rest is then what is known of that step's definition, of which the node knows more
    startup      what is done before the tasks, or None; told likewise, as is the next
    save         what the container is saved as at the end, or None
    """

    request: str
    files: tuple[str, ...] = ()
    image: Image | None = None
    workdir: str | None = None
    workdir_given: bool = False
    chdir: str | None = None
    entrypoint: tuple[str, ...] = ()
    writable: bool = True
    home: bool | None = None
    mounts: tuple[Mount, ...] = ()
    dropped: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    set_env: dict[str, str] = field(default_factory=dict)
    unset_env: tuple[str, ...] = ()
    annotations: dict[str, Any] = field(default_factory=dict)
    remap_root: bool = False
    attach: str = ""
    startup: Startup | None = None
    save: Save | None = None

    def to_json(self) -> bytes:
        """Return the canonical form: UTF-8 JSON, sorted keys, no white space, `version` included."""
        value = {"version": VERSION, **asdict(self)}
        for name in ("remap_root", "attach", "startup", "save"):
            if not value[name]:
                del value[name]
        return canonical_json(value)


def canonical_json(value: Any) -> bytes:
    """Return `value` as UTF-8 JSON with sorted keys and no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def from_json(data: bytes) -> Definition:
    """Return the definition that `to_json` wrote.

    Raises PioletError for anything else: too long, not JSON, another version, a missing or unknown
    key, a value of the wrong type, a relative path, a NUL byte.
    """
    if len(data) > LIMIT_BYTES:
        raise PioletError(f"the definition is {len(data)} bytes long, more than the limit of {LIMIT_BYTES}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise PioletError("the definition is not JSON") from None
    if not isinstance(value, dict):
        raise PioletError("the definition is not a JSON object")
    if value.pop("version", None) != VERSION:
        raise PioletError(f"the definition is not of version {VERSION}", "submit the job again")
    try:
        definition = Definition(
            request=_string(value.pop("request")),
            files=_strings(value.pop("files")),
            image=_image(value.pop("image")),
            workdir=_optional_path(value.pop("workdir")),
            workdir_given=_boolean(value.pop("workdir_given")),
            chdir=_optional_path(value.pop("chdir")),
            entrypoint=_strings(value.pop("entrypoint")),
            writable=_boolean(value.pop("writable")),
            home=_optional_boolean(value.pop("home")),
            dropped=tuple(map(_path, _list(value.pop("dropped")))),
            mounts=tuple(_mount(item) for item in _list(value.pop("mounts"))),
            devices=_strings(value.pop("devices")),
            set_env=_environment(value.pop("set_env")),
            unset_env=_strings(value.pop("unset_env")),
            annotations=_table(value.pop("annotations")),
            remap_root=_boolean(value.pop("remap_root", False)),
            attach=_step(value.pop("attach", "")),
            startup=_startup(value.pop("startup", None)),
            save=_save(value.pop("save", None)),
        )
    except KeyError as error:
        raise PioletError(f"the definition lacks {error}") from None
    if value:
        raise PioletError(f"the definition has the unknown key '{min(value)}'")
    return definition


def _string(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise PioletError("the definition has a value that should be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, which JSON can write and UTF-8 cannot.
        raise PioletError("the definition has a value that is not text") from None
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise PioletError("the definition has a value that should be true or false")
    return value


def _optional_boolean(value: Any) -> bool | None:
    return None if value is None else _boolean(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PioletError("the definition has a value that should be an array")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PioletError("the definition has a value that should be an object")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(_string(item) for item in _list(value))


def _path(value: Any) -> str:
    path = _string(value)
    if not path.startswith("/"):
        raise PioletError(f"the definition has the relative path '{path}'")
    if len(path.encode("utf-8")) > PATH_MAX:
        raise PioletError(f"the definition has a path of more than {PATH_MAX} bytes")
    return path


def _optional_path(value: Any) -> str | None:
    return None if value is None else _path(value)


def _environment(value: Any) -> dict[str, str]:
    table = {_string(name): _string(text) for name, text in _table(value).items()}
    if any(not name or "=" in name for name in table):
        raise PioletError("the definition sets a variable with an impossible name")
    return table


def _startup(value: Any) -> Startup | None:
    if value is None:
        return None
    table = _table(value)
    seconds = table["timeout_s"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86400:
        raise PioletError("the definition has an impossible time")
    if table["per"] not in ("node", "job"):
        raise PioletError("the definition has startup commands for something unknown")
    return Startup(_strings(table["commands"]), table["per"], float(seconds))


def _save(value: Any) -> Save | None:
    if value is None:
        return None
    table = _table(value)
    file, name, store = (_string(table[key]) for key in ("file", "name", "store"))
    if bool(file) == bool(name):
        raise PioletError("the definition saves the container nowhere, or twice")
    for path in (one for one in (file, store) if one):
        _path(path)
    workdir, labels = _optional_path(table["workdir"]), _environment(table["labels"])
    return Save(file, name, store, _environment(table["env"]), _strings(table["entrypoint"]), workdir, labels)


def _step(value: Any) -> str:
    text = _string(value)
    if text and not identity.is_name(text) and not identity.is_name(f"{text}.0"):
        raise PioletError("the definition names something that is no step")
    return text


def _image(value: Any) -> Image | None:
    if value is None:
        return None
    table = _table(value)
    store = table["store"]
    if store not in ("site", "user"):
        raise PioletError("the definition names a store that does not exist")
    digest = table["digest"]
    if digest is not None and not is_digest(_string(digest)):
        raise PioletError("the definition has a malformed image digest")
    image = Image(_string(table["reference"]), store, digest, _optional_path(table["path"]))
    if (store == "site" and image.digest is None) or (store == "user" and image.path is None):
        raise PioletError("the definition has an image without a place")
    return image


def _mount(value: Any) -> Mount:
    table = _table(value)
    kind = table["kind"]
    if kind not in ("bind", "sqsh", "tmpfs"):
        raise PioletError("the definition has a mount of an unknown kind")
    source = "" if kind == "tmpfs" else _path(table["source"])
    destination = _path(table["destination"])
    # A mount over the root would take away the name by which a restarted daemon knows its containers.
    parts = set(destination.split("/"))
    if ".." in parts or parts <= {"", "."}:
        raise PioletError(f"the definition has a mount at '{destination}'")
    return Mount(source, destination, kind, _strings(table["flags"]))
