"""Protocol files: YAML in, a `Plan` out, or one error that points to the line.

vetnode's protocols load unchanged. An unknown key, a value of the wrong kind, a name that is there twice and an
eval that nobody knows are errors. A user's own dotted class is not imported here: this is the login node, and
its parameters are handed over as they stand.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from piolet.api import Eval, Inconclusive
from piolet.base import units
from piolet.base.errors import VetError
from piolet.base.nearest import nearest
from piolet.vet import glance, yamltext
from piolet.vet.catalogue import VETNODE, Catalogue
from piolet.vet.runner import plan
from piolet.vet.yamltext import Mark, Node, Scalar, Sequence, YamlFile

_PROTOCOL_KEYS = ("name", "evals", "scheduler", "pip", "budget", "min_nodes", "spares")
_EVAL_KEYS = (
    "name", "type", "requirements", "scheduler", "timeout", "where", "on_fail", "on_inconclusive", "baseline", "cache",
)  # fmt: skip
_SCHEDULERS = ("slurm", "standalone", "openPBS")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_ADDED_BYTES = 256
_NAME_MAX = 200
_NULLS = ("", "~", "null", "Null", "NULL")


def load(path: str, known: Catalogue, search: Iterable[str] = ()) -> plan.Plan:
    """Return the plan in the protocol file `path`. Raises VetError."""
    return build(yamltext.read(path), known, search)


def build(document: YamlFile, known: Catalogue, search: Iterable[str] = ()) -> plan.Plan:
    """Return the plan in `document`; `search` is where a user's own classes will be looked for."""
    reader = _Reader(document)
    top = reader.table(document.root, _PROTOCOL_KEYS, "a protocol")
    if "evals" not in top:
        raise document.error("the protocol has no 'evals'", document.root.place, "list the checks under 'evals:'")
    evals = top["evals"]
    if not isinstance(evals, Sequence) or not evals.items:
        raise document.error("'evals' must be a list of at least one eval", evals.place, "each begins with '- type: …'")
    pip = reader.table(top["pip"], ("index_url",), "pip") if "pip" in top else {}
    if "scheduler" in top:
        reader.choice(top["scheduler"], "scheduler", _SCHEDULERS)
    tasks: dict[str, plan.Task] = {}
    for item in evals.items:
        task, place = _task(reader, item, known, tuple(search))
        if task.name in tasks:
            raise document.error(f"there are two evals with the name '{task.name}'", place, "give one another 'name'")
        tasks[task.name] = task
    default = plan.Plan("", ())
    found = plan.Plan(
        name=reader.text(top["name"], "name") if "name" in top else os.path.basename(document.path),
        tasks=tuple(tasks.values()),
        budget_s=reader.number(top.get("budget"), "budget", "s", default.budget_s, above=0),
        min_nodes=int(reader.number(top.get("min_nodes"), "min_nodes", "", 0, whole=True)),
        spares=int(reader.number(top.get("spares"), "spares", "", 0, whole=True)),
        index_url=reader.text(pip["index_url"], "index_url") if "index_url" in pip else "",
    )
    # What srun adds to it is short.
    plan.text(found, plan.LIMIT_BYTES - _ADDED_BYTES)
    return found


def _task(reader: _Reader, item: Node, known: Catalogue, search: tuple[str, ...]) -> tuple[plan.Task, Mark]:
    document = reader.document
    if not isinstance(item, yamltext.Mapping):
        raise document.error("an eval must be a table", item.place, "it begins with '- type: …'")
    if "type" not in item.items:
        raise reader.misspelt(item, "type") or document.error("this eval has no 'type'", item.place)
    written = reader.text(item.items["type"], "type")
    entry = known.find(written)
    kind: type[Eval] | None = None
    if entry is not None:
        try:
            kind = entry.kind
        except Inconclusive as error:
            raise VetError(f"the eval '{entry.name}' is broken: {error}") from None
        target, name = entry.target, entry.name
    elif "." in written and all(part.isidentifier() for part in written.split(".")) and not _vetnode(written):
        module, _, class_name = written.rpartition(".")
        target, name = f"{module}:{class_name}", written
    else:
        hint = _did_you_mean(written, known.names()) or "`piolet vet list` shows them all"
        raise document.error(f"there is no eval '{written}'", item.items["type"].place, hint)
    parameters = _parameters(reader, item, kind, written)
    seen = glance.ClassGlance(kind.better) if kind else glance.look(name, search)
    common = _common(reader, item, kind, name, seen.better)
    # Of an image's Python nothing is known here.
    if seen.broken and common["where"] == plan.HOST:
        what = f"the eval '{written}' cannot be imported: {seen.broken}"
        raise document.error(what, item.items["type"].place, "mend that file")
    if seen.scope in ("pair", "group"):
        what = f"the eval '{written}' has scope = '{seen.scope}': {plan.OWN_SCOPE}"
        raise document.error(what, item.items["type"].place, "let it judge each node alone, or ask the site for it")
    own_name = reader.text(item.items["name"], "name") if "name" in item.items else name
    if "name" in item.items and len(own_name) > _NAME_MAX:
        raise document.error(f"'name' must be at most {_NAME_MAX} characters long", item.items["name"].place)
    task = plan.Task(
        name=own_name,
        kind=name,
        target=target,
        scope=kind.scope_of(parameters) if kind else "node",
        loads=tuple(sorted(kind.loads)) if kind else (),
        parameters=parameters,
        search=() if kind else search,
        unit=kind.unit if kind else "",
        better=kind.better if kind else "",
        effect=kind.effect if kind else 0.1,
        **common,
    )
    return task, item.items.get("name", item).place


def _vetnode(name: str) -> bool:
    """Return whether a dotted name looks like one of vetnode's, which nobody could import: it is misspelt."""
    return name.startswith("vetnode.") and name not in VETNODE


def _common(
    reader: _Reader, item: yamltext.Mapping, kind: type[Eval] | None, name: str, better: str | None
) -> dict[str, Any]:
    get = item.items.get
    if "scheduler" in item.items:
        reader.choice(item.items["scheduler"], "scheduler", _SCHEDULERS)
    baseline = "absolute"
    if "baseline" in item.items:
        baseline = reader.choice(item.items["baseline"], "baseline", ("absolute", "peers", "history", "site"))
        comparable = ("higher", "lower", "same") if baseline == "peers" else ("higher", "lower")
        # None is a class that only the nodes see: it is asked there.
        if baseline != "absolute" and better is not None and better not in comparable:
            what = f"its class says better = '{better}'" if better else "its class does not say what is better"
            hint = None if kind else "set better = 'higher' or 'lower' there"
            raise reader.document.error(
                f"'{name}' cannot be compared with {baseline}: {what}", item.items["baseline"].place, hint
            )
    return {
        "requirements": reader.requirements(get("requirements")),
        "timeout_s": reader.number(get("timeout"), "timeout", "s", kind.timeout_s if kind else 30.0, above=0),
        "where": reader.choice(get("where"), "where", (plan.HOST, plan.ENVIRONMENT)),
        "on_fail": reader.choice(get("on_fail"), "on_fail", (plan.EXCLUDE, plan.ABORT, plan.WARN)),
        "on_inconclusive": reader.choice(get("on_inconclusive"), "on_inconclusive", ("fail", "warn", "pass")),
        "baseline": baseline,
        "cache_s": reader.number(get("cache"), "cache", "s", 0.0),
    }


def _parameters(reader: _Reader, item: yamltext.Mapping, kind: type[Eval] | None, written: str) -> dict[str, Any]:
    own = {key: node for key, node in item.items.items() if key not in _EVAL_KEYS}
    if kind is None:
        return {key: reader.plain(node) for key, node in own.items()}
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    wanted = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, node in own.items():
        if key not in fields:
            raise reader.unknown(key, item.keys[key], [*fields, *_EVAL_KEYS], f"the eval '{written}'")
        values[key] = reader.typed(node, wanted[key], fields[key].metadata, key)
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in values:
            raise reader.document.error(f"the eval '{written}' needs '{name}'", item.place)
    return values


def _alternatives(wanted: Any) -> list[Any]:
    """Return the types of a union without None; the first one decides."""
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return [choice for choice in typing.get_args(wanted) if choice is not type(None)]
    return [wanted]


def _did_you_mean(name: str, names: Iterable[str]) -> str | None:
    near = nearest(name, names)
    return f"did you mean '{near}'?" if near else None


class _Reader:
    """Takes values out of a document, or says where they are wrong."""

    def __init__(self, document: YamlFile) -> None:
        self.document = document

    def wrong(self, node: Node, what: str, expected: str) -> VetError:
        shown = f", not '{node.text[:60]}'" if isinstance(node, Scalar) else ""
        return self.document.error(f"'{what}' must be {expected}{shown}", node.place)

    def unknown(self, key: str, place: Mark, known: Iterable[str], where: str) -> VetError:
        names = list(known)
        hint = _did_you_mean(key, names) or f"known here: {', '.join(sorted(set(names)))}"
        return self.document.error(f"unknown key '{key}' in {where}", place, hint)

    def misspelt(self, item: yamltext.Mapping, wanted: str) -> VetError | None:
        near = nearest(wanted, [key for key in item.items if key not in _EVAL_KEYS])
        return self.unknown(near, item.keys[near], [wanted], "an eval") if near else None

    def table(self, node: Node, known: tuple[str, ...], where: str) -> dict[str, Node]:
        if not isinstance(node, yamltext.Mapping):
            hint = "lines such as 'key: value'"
            if self.document.path.endswith(".toml"):
                hint = "a protocol is YAML; a definition file of a container is given by --environment"
            raise self.document.error(f"{where} must be a table", node.place, hint)
        for key in node.items:
            if key not in known:
                raise self.unknown(key, node.keys[key], known, where)
        return node.items

    def text(self, node: Node, what: str) -> str:
        if not isinstance(node, Scalar) or not node.text.strip():
            raise self.wrong(node, what, "text")
        if not node.text.isprintable() or len(node.text) > 4096:
            raise self.document.error(f"'{what}' must be printable text of one line", node.place)
        return node.text.strip()

    def choice(self, node: Node | None, what: str, allowed: tuple[str, ...]) -> str:
        """Return the word, or the first of `allowed` when there is none."""
        if node is None:
            return allowed[0]
        if not isinstance(node, Scalar) or node.text not in allowed:
            expected = " or ".join([", ".join(f"'{word}'" for word in allowed[:-1]), f"'{allowed[-1]}'"])
            raise self.wrong(node, what, expected)
        return node.text

    def number(
        self, node: Node | None, what: str, unit: str, default: float,
        above: float | None = None, whole: bool = False, least: float | None = 0,
    ) -> float:  # fmt: skip
        if node is None:
            return default
        if not isinstance(node, Scalar):
            raise self.wrong(node, what, "a number")
        try:
            value = units.parse(node.text, unit)
        except ValueError as error:
            raise self.wrong(node, what, str(error)) from None
        if whole and value != int(value):
            raise self.wrong(node, what, "a whole number")
        if above is not None and value <= above:
            raise self.wrong(node, what, f"more than {above:g}")
        if least is not None and value < least:
            raise self.wrong(node, what, f"at least {least:g}")
        return value

    def requirements(self, node: Node | None) -> tuple[tuple[str, ...], ...]:
        if node is None or (isinstance(node, Scalar) and node.plain and node.text in _NULLS):
            return ()
        if not isinstance(node, Sequence):
            raise self.wrong(node, "requirements", "a list of what pip should install")
        found = []
        for item in node.items:
            words = item.items if isinstance(item, Sequence) else [item]
            one = tuple(self.text(word, "requirements") for word in words)
            if not one or one[0].startswith("-"):
                raise self.document.error("a requirement begins with a package, options follow it", item.place)
            found.append(one)
        return tuple(found)

    def typed(self, node: Node, wanted: Any, metadata: Mapping[str, Any], what: str) -> Any:
        """Return `node` as the type `wanted` of a parameter."""
        choices = typing.get_args(wanted)
        if isinstance(node, Scalar) and node.plain and node.text in _NULLS and type(None) in choices:
            return None
        for one in _alternatives(wanted):
            origin = typing.get_origin(one) or one
            if origin in (int, float):
                value = self.number(
                    node, what, metadata.get("unit", ""), 0.0, whole=origin is int, least=metadata.get("least")
                )
                return origin(value)
            if origin is bool:
                if isinstance(node, Scalar) and node.plain and node.text.lower() in _WORDS:
                    return _WORDS[node.text.lower()]
                raise self.wrong(node, what, "true or false")
            if origin is typing.Literal:
                return self.choice(node, what, typing.get_args(one))
            if origin in (tuple, list):
                items = node.items if isinstance(node, Sequence) else [node]
                return [self.text(item, what) for item in items]
            if origin is str:
                return self.text(node, what)
            if not isinstance(node, yamltext.Mapping):
                raise self.wrong(node, what, "a table")
            return self.record(node, one, what)
        raise AssertionError(f"the parameter '{what}' has a type that protocols cannot write")

    def record(self, node: yamltext.Mapping, wanted: Any, what: str) -> dict[str, Any]:
        """Return a nested table: of a dataclass, or of text and null."""
        if not dataclasses.is_dataclass(wanted):
            return {key: self.nullable(value, key) for key, value in node.items.items()}
        fields = {field.name: field for field in dataclasses.fields(wanted)}
        hints = typing.get_type_hints(wanted)
        for key in node.items:
            if key not in fields:
                raise self.unknown(key, node.keys[key], fields, f"'{what}'")
        return {key: self.typed(value, hints[key], fields[key].metadata, key) for key, value in node.items.items()}

    def nullable(self, node: Node, what: str) -> str | None:
        if isinstance(node, Scalar):
            return None if node.plain and node.text in _NULLS else node.text
        raise self.wrong(node, what, "text, or nothing")

    def plain(self, node: Node) -> Any:
        """Return `node` as YAML's core schema reads it, for classes that are not known here."""
        if isinstance(node, Sequence):
            return [self.plain(item) for item in node.items]
        if isinstance(node, yamltext.Mapping):
            return {key: self.plain(value) for key, value in node.items.items()}
        if not node.plain:
            return node.text
        if node.text in _NULLS:
            return None
        if node.text.lower() in ("true", "false"):
            return node.text.lower() == "true"
        for convert in (int, float):
            try:
                return convert(node.text)
            except ValueError:
                continue
        return node.text
