"""Environment definition files: their keys and types, and what they inherit from each other.

`load` reads a file and all that it is based on into one layer. It refuses unknown keys, values of a
wrong type, NUL bytes, variables that belong to the step, circles, and more than ten levels of bases.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import EnvironmentFileError
from piolet.base.nearest import nearest
from piolet.base.positions import Path
from piolet.environment import lookup
from piolet.environment.expand import ExpandError, expand
from piolet.environment.layer import Entry, Layer, combine_all
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.source import Source, read
from piolet.submission.dependencies import Host

LEVELS_LIMIT = 10
FILES_LIMIT = 100

_SCALARS: dict[str, type] = {"image": str, "workdir": str, "entrypoint": bool, "writable": bool, "remap_root": bool}
_TABLES = ("env", "annotations")
KEYS = ("base_environment", *_SCALARS, "mounts", "devices", *_TABLES)
STEP_PREFIXES = ("SLURM_", "PMI_", "PMIX_")
# What users tune in PMIx; Slurm sets none of these for a step.
TUNABLE_PREFIX = "PMIX_MCA_"

_UNKNOWN_SHOWN = 10


@dataclass(frozen=True)
class Document:
    """One file: its own values, and the entries of `base_environment`."""

    bases: tuple[Entry, ...]
    layer: Layer


def load(request: str, host: Host, config: EnvironmentConfig) -> Layer:
    """Return what `request` means with everything that it inherits. Raises EnvironmentFileError."""
    path = lookup.find(request, host, config.edf_path)
    return combine_all(_Loader(host, config).layers(path, ()))


class _Loader:
    def __init__(self, host: Host, config: EnvironmentConfig) -> None:
        self.host = host
        self.config = config
        self.documents: dict[str, Document] = {}
        self.visits = 0

    def layers(self, path: str, chain: tuple[Source, ...]) -> Iterator[Layer]:
        """Yield the layers of the file at `path`, those that it is based on first."""
        document = self.document(path)
        source = document.layer.sources[0]
        self.visits += 1
        for entry in document.bases:
            base = self.base_path(entry)
            self.check(base, entry, (*chain, source))
            yield from self.layers(base, (*chain, source))
        yield document.layer

    def document(self, path: str) -> Document:
        if path not in self.documents:
            source = read(path)
            if source.stamp is not None:
                self.host.file(path, source.stamp)
            self.documents[path] = read_document(source, strict=self.config.unknown_keys == "error")
        return self.documents[path]

    def base_path(self, entry: Entry) -> str:
        request = expand_entry(entry, self.host)
        try:
            return lookup.find(request, self.host, self.config.edf_path)
        except EnvironmentFileError as error:
            beside = f"{entry.source.directory}/{request}"
            hint = error.hint
            if not request.startswith("/") and lookup.is_regular(beside):
                hint = f'the file is beside this one: write "${{EDF_DIR}}/{request}"'
            raise EnvironmentFileError(error.message, hint, entry.locate()) from None

    def check(self, base: str, entry: Entry, chain: tuple[Source, ...]) -> None:
        try:
            stamp = self.document(base).layer.sources[0].stamp
        except EnvironmentFileError as error:
            if error.location is None:
                error.location = entry.locate()
            raise
        same = [i for i, above in enumerate(chain) if above.path == base or _same_file(above.stamp, stamp)]
        if same:
            circle = " -> ".join([above.path for above in chain[same[0] :]] + [base])
            raise EnvironmentFileError(f"base_environment goes in a circle: {circle}", None, entry.locate())
        if len(chain) > LEVELS_LIMIT:
            names = " -> ".join([above.path for above in chain] + [base])
            raise EnvironmentFileError(
                f"base_environment goes more than {LEVELS_LIMIT} levels deep: {names}", None, entry.locate()
            )
        if self.visits >= FILES_LIMIT:
            raise EnvironmentFileError(
                f"base_environment leads to more than {FILES_LIMIT} files",
                "a file counts each time that it is inherited",
                entry.locate(),
            )


def _same_file(one: Any, other: Any) -> bool:
    return bool(one and other and (one.device, one.inode) == (other.device, other.inode))


def expand_entry(entry: Entry, host: Host, image_env: dict[str, str] | None = None, quote: Any = str) -> str:
    """Return the entry's text expanded, noting in `host` which variables of the host were used.

    Variables of `image_env`, where it is given, come before those of the host. Raises
    EnvironmentFileError with the place of the `${…}` that failed.
    """
    own = {"EDF_DIR": entry.source.directory, **(image_env or {})}
    try:
        result = expand(entry.text, {**host.variables, **own} if "${" in entry.text else {}, quote)
    except ExpandError as error:
        where = entry.locate(fragment=error.fragment)
        raise EnvironmentFileError(f"{error.message}, in {entry.name}", error.hint, where) from None
    for name in result.names:
        if name not in own:
            host.variable(name)
    return result.text


def read_document(source: Source, *, strict: bool) -> Document:
    """Return the values of a parsed file, their types checked. `strict`: an unknown key is an error."""
    data = source.data
    warnings: list[str] = []
    for key in itertools.islice((key for key in data if key not in KEYS), _UNKNOWN_SHOWN):
        where = source.locate((key,), key=True)
        near, hint = nearest(key, KEYS), f"the keys are {', '.join(KEYS)}"
        if isinstance(data[key], dict):  # [environment] is meant for [env], not for base_environment
            near, hint = nearest(key, _TABLES), f"the tables are {', '.join(f'[{table}]' for table in _TABLES)}"
        hint = f"did you mean '{near}'?" if near else hint
        if strict:
            raise EnvironmentFileError(f"unknown key '{key[:80]}'", hint, where)
        warnings.append(f"{where.path}:{where.line}: the unknown key '{key[:80]}' is ignored ({hint})")
    layer = Layer(
        sources=(source,),
        scalars={key: _scalar(source, (key,), kind, data[key]) for key, kind in _SCALARS.items() if key in data},
        mounts=_strings(source, "mounts"),
        devices=_strings(source, "devices"),
        env=_environment(source),
        annotations=_annotations(source),
        warnings=tuple(warnings),
    )
    bases = data.get("base_environment", [])
    if isinstance(bases, str):
        return Document((_scalar(source, ("base_environment",), str, bases),) if bases else (), layer)
    return Document(_strings(source, "base_environment"), layer)


def _scalar(source: Source, path: Path, kind: type, value: Any) -> Entry:
    entry = Entry(value, source, path)
    if type(value) is not kind:
        wanted = {str: "a string", bool: "true or false"}[kind]
        hint = None
        if isinstance(value, str) and value in ("true", "false"):
            hint = f"without quotes: {value}"
        elif kind is str and isinstance(value, bool | int | float):
            hint = f'in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
        raise EnvironmentFileError(f"{entry.name} must be {wanted}, not {_kind(value)}", hint, entry.locate())
    if isinstance(value, str) and "\0" in value:
        raise EnvironmentFileError(f"{entry.name} holds a NUL byte", None, entry.locate())
    return entry


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def _strings(source: Source, key: str) -> tuple[Entry, ...]:
    value = source.data.get(key, [])
    if not isinstance(value, list):
        single = "a string or " if key == "base_environment" else ""
        raise EnvironmentFileError(
            f"{key} must be {single}an array of strings, not {_kind(value)}",
            f'in brackets: {key} = ["…"]' if isinstance(value, str) else None,
            source.locate((key,)),
        )
    return tuple(_scalar(source, (key, index), str, item) for index, item in enumerate(value))


def _table(source: Source, key: str) -> dict[str, Any]:
    value = source.data.get(key, {})
    if not isinstance(value, dict):
        raise EnvironmentFileError(
            f"{key} must be a table, not {_kind(value)}", f"a table begins with the line [{key}]", source.locate((key,))
        )
    return value


def _environment(source: Source) -> dict[str, Entry]:
    entries = {}
    for name, value in _table(source, "env").items():
        path = ("env", name)
        if not name or "=" in name or "\0" in name:
            raise EnvironmentFileError(
                "a variable's name must not be empty and holds neither '=' nor a NUL byte",
                None,
                source.locate(path, key=True),
            )
        if name.startswith(STEP_PREFIXES) and not name.startswith(TUNABLE_PREFIX):
            raise EnvironmentFileError(
                f"{name[:80]} belongs to the step, so that a definition file cannot set or unset it",
                None,
                source.locate(path, key=True),
            )
        entries[name] = _scalar(source, path, str, value)
    return entries


def _annotations(source: Source) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    pending: list[tuple[Path, Any]] = [(("annotations",), _table(source, "annotations"))]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending += [((*path, key), item) for key, item in reversed(value.items())]
            continue
        name = ".".join(str(part) for part in path[1:])
        if "\0" in name:
            where = source.locate(path, key=True)
            raise EnvironmentFileError("the name of an annotation holds a NUL byte", None, where)
        if name in entries:
            where = source.locate(path, key=True)
            raise EnvironmentFileError(f"the annotation '{name[:80]}' is there twice", "leave one of them out", where)
        if isinstance(value, bool | int):
            # Annotations are strings, but `enabled = true` can only mean one thing.
            value = str(value).lower()
        entries[name] = _scalar(source, path, str, value)
    return entries
