"""Environment definition files: their keys and types, and what they inherit from each other.

`load` reads a file and all that it is based on into one layer. It refuses unknown keys, values of a
wrong type, NUL bytes, variables that belong to the step, circles, and more than ten levels of bases.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from piolet.base.errors import EnvironmentFileError, Location
from piolet.base.nearest import nearest
from piolet.base.positions import Path
from piolet.environment import around, envfile, lookup, words
from piolet.environment import request as asked
from piolet.environment.expand import ExpandError, expand
from piolet.environment.layer import Entry, Layer, combine_all
from piolet.environment.problems import Problems
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.source import Source, read
from piolet.environment.values import kind_of, scalar
from piolet.submission.dependencies import Host

LEVELS_LIMIT = 10
FILES_LIMIT = 100

_SCALARS: dict[str, type] = {
    **dict.fromkeys(("image", "workdir", "env_policy", "script", "save"), str),
    **dict.fromkeys(("entrypoint", "writable", "home", "remap_root"), bool),
}
# A string or an array of them.
_ONE_OR_MORE = ("base_environment", "env_file")
_WORDS = {"env_policy": ("inherit", "clean"), "script": ("outside", "inside")}
_TABLES = ("env", "annotations", around.TABLE)
KEYS = (*_ONE_OR_MORE, *_SCALARS, "mounts", "devices", *_TABLES)
STEP_PREFIXES = ("SLURM_", "PMI_", "PMIX_")
# What users tune in PMIx; Slurm sets none of these for a step.
TUNABLE_PREFIX = "PMIX_MCA_"

_UNKNOWN_SHOWN = 10


@dataclass(frozen=True)
class Document:
    """One file: its own values, and the entries of `base_environment` and of `env_file`."""

    bases: tuple[Entry, ...]
    layer: Layer
    env_files: tuple[Entry, ...] = ()


def load(request: str, host: Host, config: EnvironmentConfig, problems: Problems | None = None) -> Layer:
    """Return what `request` means with everything that it inherits; `problems` gets what is wrong with the files.

    Raises EnvironmentFileError: there is no such file, or it cannot be read; without `problems`, whatever is wrong.
    """
    name, above = asked.split(request, host.cwd)
    found = Problems() if problems is None else problems
    loader = _Loader(host, config, found)
    layers: list[Layer] = []
    if name == "-":
        layers += loader.layers(loader.standard_input(), ())
    elif name or above is None:
        layers += loader.layers(lookup.find(name, host, config.edf_path), ())
    if above is not None:
        layers.append(read_document(above, strict=True, problems=found).layer)
    layer = combine_all(layers)
    if problems is None:
        found.report()
    return layer


class _Loader:
    def __init__(self, host: Host, config: EnvironmentConfig, problems: Problems) -> None:
        self.host = host
        self.config = config
        self.problems = problems
        self.documents: dict[str, Document] = {}
        self.visits = 0

    def layers(self, path: str, chain: tuple[Source, ...]) -> Iterator[Layer]:
        """Yield the layers of the file at `path`, those that it is based on first."""
        document = self.document(path)
        source = document.layer.sources[0]
        self.visits += 1
        for entry in document.bases:
            with self.problems.gather():
                base = self.base_path(entry)
                self.check(base, entry, (*chain, source))
                yield from self.layers(base, (*chain, source))
        yield document.layer

    def document(self, path: str) -> Document:
        if path not in self.documents:
            source = read(path)
            if source.stamp is not None:
                self.host.file(path, source.stamp)
            self.documents[path] = self.read(source)
        return self.documents[path]

    def standard_input(self) -> str:
        """Read the definition there; return the path by which it is known."""
        source = asked.standard_input(self.host.cwd)
        self.documents[source.path] = self.read(source)
        return source.path

    def read(self, source: Source) -> Document:
        strict = self.config.unknown_keys == "error"
        document = read_document(source, strict=strict, problems=self.problems)
        variables: dict[str, Entry] = {}
        for entry in document.env_files:
            with self.problems.gather():
                variables |= self.variables(entry)
        layer = replace(document.layer, env={**variables, **document.layer.env})
        return replace(document, layer=layer)

    def variables(self, entry: Entry) -> dict[str, Entry]:
        """Return the variables of a file that `env_file` names."""
        path = self.host.absolute(expand_entry(entry, self.host))
        try:
            source, found = envfile.read(path)
        except EnvironmentFileError as error:
            error.location = error.location or entry.locate()
            raise
        if source.stamp is not None:
            self.host.file(path, source.stamp)
        for name in found:
            refuse_name(name, source.locate(("env", name), key=True))
        return found

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


def expand_entry(entry: Entry, host: Host, own: Mapping[str, str] | None = None, quote: Any = str) -> str:
    """Return the entry's text expanded, noting in `host` which variables of the host were used.

    Variables in `own`, where it is given, come before those of the host. Raises
    EnvironmentFileError with the place of the `${…}` that failed.
    """
    own = {"EDF_DIR": entry.source.directory, **(own or {})}
    try:
        result = expand(entry.text, {**host.variables, **own} if "${" in entry.text else {}, quote)
    except ExpandError as error:
        where = entry.locate(fragment=error.fragment)
        raise EnvironmentFileError(f"{error.message}, in {entry.name}", error.hint, where) from None
    for name in result.names:
        if name not in own:
            host.variable(name)
    return result.text


def read_document(source: Source, *, strict: bool, problems: Problems | None = None) -> Document:
    """Return the values of a parsed file that are right; `problems` gets what is wrong with the others.

    With `strict` an unknown key is wrong. Without `problems` it raises EnvironmentFileError.
    """
    found = Problems() if problems is None else problems
    document = _Reader(source, found).document(strict)
    if problems is None:
        found.report()
    return document


class _Reader:
    def __init__(self, source: Source, problems: Problems) -> None:
        self.source = source
        self.problems = problems

    def document(self, strict: bool) -> Document:
        source = self.source
        warnings = self.unknown_keys(strict)
        layer = Layer(
            sources=(source,),
            scalars=dict(self.scalars()),
            mounts=tuple(self.strings("mounts")),
            devices=tuple(self.strings("devices")),
            env=dict(self.environment()),
            annotations=self.annotations(),
            startup=around.read(source, self.table(around.TABLE), self.problems),
            warnings=tuple(warnings),
        )
        bases, env_files = (tuple(self.one_or_more(key)) for key in _ONE_OR_MORE)
        return Document(bases, layer, env_files)

    def one_or_more(self, key: str) -> Iterator[Entry]:
        value = self.source.data.get(key, [])
        if not isinstance(value, str):
            yield from self.strings(key)
        elif value:
            with self.problems.gather():
                yield scalar(self.source, (key,), str, value)

    def unknown_keys(self, strict: bool) -> list[str]:
        source, data = self.source, self.source.data
        warnings = []
        for key in itertools.islice((key for key in data if key not in KEYS), _UNKNOWN_SHOWN):
            where = source.locate((key,), key=True)
            hint = words.of_key(key, KEYS) or f"the keys are {', '.join(KEYS)}"
            if isinstance(data[key], dict):  # [environment] is meant for [env], not for base_environment
                near = nearest(key, _TABLES)
                hint = f"the tables are {', '.join(f'[{table}]' for table in _TABLES)}"
                hint = f"did you mean '{near}'?" if near else words.FOREIGN.get(key.lower(), hint)
            if strict:
                with self.problems.gather():
                    raise EnvironmentFileError(f"unknown key '{key[:80]}'", hint, where)
            warnings.append(f"{where.path}:{where.line}: the unknown key '{key[:80]}' is ignored ({hint})")
        return warnings

    def scalars(self) -> Iterator[tuple[str, Entry]]:
        for key, kind in _SCALARS.items():
            if key in self.source.data:
                with self.problems.gather():
                    entry = scalar(self.source, (key,), kind, self.source.data[key])
                    allowed = _WORDS.get(key)
                    if allowed and entry.value not in allowed:
                        known = " or ".join(f"'{word}'" for word in allowed)
                        what = f"{key} must be {known}, not '{entry.text[:40]}'"
                        raise EnvironmentFileError(what, None, entry.locate())
                    yield key, entry

    def strings(self, key: str) -> Iterator[Entry]:
        value = self.source.data.get(key, [])
        with self.problems.gather():
            if not isinstance(value, list):
                single = "a string or " if key in _ONE_OR_MORE else ""
                raise EnvironmentFileError(
                    f"{key} must be {single}an array of strings, not {kind_of(value)}",
                    f'in brackets: {key} = ["…"]' if isinstance(value, str) else None,
                    self.source.locate((key,)),
                )
            for index, item in enumerate(value):
                with self.problems.gather():
                    yield scalar(self.source, (key, index), str, item)

    def table(self, key: str) -> dict[str, Any]:
        value = self.source.data.get(key, {})
        with self.problems.gather():
            if isinstance(value, dict):
                return value
            raise EnvironmentFileError(
                f"{key} must be a table, not {kind_of(value)}",
                f"a table begins with the line [{key}]",
                self.source.locate((key,)),
            )
        return {}

    def environment(self) -> Iterator[tuple[str, Entry]]:
        for name, value in self.table("env").items():
            with self.problems.gather():
                yield name, _variable(self.source, name, value)

    def annotations(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        pending: list[tuple[Path, Any]] = [(("annotations",), self.table("annotations"))]
        while pending:
            path, value = pending.pop()
            if isinstance(value, dict):
                pending += [((*path, key), item) for key, item in reversed(value.items())]
                continue
            with self.problems.gather():
                name = ".".join(str(part) for part in path[1:])
                where = self.source.locate(path, key=True)
                if "\0" in name:
                    raise EnvironmentFileError("the name of an annotation holds a NUL byte", None, where)
                if name in entries:
                    what = f"the annotation '{name[:80]}' is there twice"
                    raise EnvironmentFileError(what, "leave one of them out", where)
                _refuse_key(name, "annotations", "an annotation", where)
                if isinstance(value, bool | int):
                    # Annotations are strings, but `enabled = true` can only mean one thing.
                    value = str(value).lower()
                entries[name] = scalar(self.source, path, str, value)
        return entries


def _variable(source: Source, name: str, value: Any) -> Entry:
    path, where = ("env", name), source.locate(("env", name), key=True)
    refuse_name(name, where)
    _refuse_key(name, "env", "a variable", where)
    return scalar(source, path, str, value)


def refuse_name(name: str, where: Location) -> None:
    """Refuse a name that no variable can have, or that a definition must not set. Raises EnvironmentFileError."""
    if not name or "=" in name or "\0" in name:
        what = "a variable's name must not be empty and holds neither '=' nor a NUL byte"
        raise EnvironmentFileError(what, None, where)
    if name.startswith(STEP_PREFIXES) and not name.startswith(TUNABLE_PREFIX):
        what = f"{name[:80]} belongs to the step, so that a definition file cannot set or unset it"
        raise EnvironmentFileError(what, None, where)


def _refuse_key(name: str, table: str, what: str, where: Location) -> None:
    """Refuse a key of the file that stands in a table: below the line [env], `image = …` would be a variable."""
    if name in KEYS:
        raise EnvironmentFileError(
            f"'{name}' stands in the table [{table}], where it would be {what}",
            f"move it above the line [{table}]: what stands below belongs to the table",
            where,
        )
