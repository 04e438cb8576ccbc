"""What the site's people say of nodes, as records that rules see: repaired, vetted again, a case seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from piolet.base.errors import EventError
from piolet.events.envelope import SITE, Event

EPOCH = hashlib.sha256(b"piolet-central site").hexdigest()[:16]
TEXT_MAX = 2000


def acknowledged(cluster: str, node: str, now: float, said: Mapping[str, str]) -> Event:
    """Return the record of somebody's having seen a case: said has text, by and case."""
    return _event(cluster, node, "site.note", now, said, ("text", "by", "case"))


def repaired(cluster: str, node: str, now: float, said: Mapping[str, str]) -> Event:
    """Return the record of a repair: said has text, by and perhaps ticket. Raises EventError."""
    if not said.get("text", "").strip():
        raise EventError("of a repair it is to be said what was done, in one line")
    return _event(cluster, node, "site.repair", now, said, ("text", "by", "ticket"))


def revetted(cluster: str, node: str, now: float, said: Mapping[str, str]) -> Event:
    """Return the record of a re-vet: said has outcome (good, bad), perhaps reason and request. Raises EventError."""
    if said.get("outcome") not in ("good", "bad"):
        raise EventError(f"a re-vet comes out good or bad, not {said.get('outcome')!r}")
    return _event(cluster, node, "site.revet", now, said, ("outcome", "reason", "request"))


def _event(cluster: str, node: str, kind: str, now: float, said: Mapping[str, str], keys: tuple[str, ...]) -> Event:
    body = {key: said[key] for key in keys if said.get(key)}
    for key, text in body.items():
        if len(text) > TEXT_MAX or not text.isprintable():
            raise EventError(f"{key} is one line of at most {TEXT_MAX} printable characters")
    return Event(cluster, node, EPOCH, int(now * 1e6), now, kind, SITE, body=body)
