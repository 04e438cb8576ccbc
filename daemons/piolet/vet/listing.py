"""What `piolet vet list` prints of the evals. Pure functions over the catalogue."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from piolet.vet.catalogue import Catalogue, Entry


def overview(known: Catalogue) -> list[str]:
    """Return a line for each eval."""
    lines = [f"{'name':21} {'unit':9} {'scope':6} what it checks; what it needs"]
    for entry in known.entries.values():
        kind = entry.kind
        needs = f"; needs {kind.needs}" if kind.needs else ""
        lines.append(f"{entry.name:21} {kind.unit or '-':9} {kind.scope:6} {kind.text}{needs}")
    return lines


def explain(entry: Entry) -> list[str]:
    """Return everything about one eval, its parameters included."""
    kind = entry.kind
    facts = {
        "checks": kind.text,
        "how": kind.how,
        "source": kind.source,
        "needs": kind.needs or "nothing",
        "unit": kind.unit or "-",
        "scope": kind.scope,
        "side by side": f"not with others that load {', '.join(sorted(kind.loads))}" if kind.loads else "with any",
        "timeout": f"{kind.timeout_s:g} s",
    }
    lines = [entry.name, *(f"  {name:13} {text}" for name, text in facts.items()), "  parameters"]
    for field in dataclasses.fields(cast(Any, kind)):
        unit = f" [{field.metadata['unit']}]" if field.metadata.get("unit") else ""
        lines.append(f"    {field.name}{unit}: {field.metadata.get('text', '')} ({_default(field)})")
    return lines


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "none"
    if field.default is dataclasses.MISSING:
        return "must be given"
    if field.default == () or field.default == "":
        return "none"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
