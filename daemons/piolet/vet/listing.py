"""What `piolet vet list` prints of the evals. Pure functions over the catalogue."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from piolet.base import texts
from piolet.vet.catalogue import Catalogue, CatalogueEntry


def overview(known: Catalogue) -> list[str]:
    """Return a line for each eval."""
    rows = [("name", "unit", "scope", "what it checks; what it needs")]
    for entry in known.entries.values():
        kind = entry.kind
        needs = f"; needs {kind.needs}" if kind.needs else ""
        rows.append((entry.name, kind.unit or "-", kind.scope, f"{kind.text}{needs}"))
    return texts.columns(rows, (21, 9, 6), gap=1)


def explain(entry: CatalogueEntry) -> list[str]:
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
