"""Keeps what the rules know in the store, so that a restart judges what came since, and not everything.

A state says what it is of: the last batch that was judged, the rules, the code that judged, and its own SHA-256. If any
of it is not what is there now, the state is left alone and the whole store is judged, as without one: what is concluded
is the same, and only how long a start takes is not (decision 131).
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import importlib.resources
import itertools
import json
import logging
import secrets
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from piolet.central.recent import Recent
from piolet.central.rules import state
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule
from piolet.central.store import states

_LOG = logging.getLogger("piolet-central")
_FORMAT = 1
PACKED_MAX, LINES_MAX = 128 << 20, 1 << 30
"""Bytes of a state, packed and not: a larger one is not kept, and not read."""
_CODE = (("piolet.central.rules", ""), ("piolet.central", "recent.py"), ("piolet.central", "failures.py"),
         ("piolet.events", "kinds.py"), ("piolet.steps", "identity.py"),
         ("piolet.events", "envelope.py"), ("piolet.vet.evals", "_severities.py"))  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Up to where records were judged: the number of a batch, and that of its last record."""

    batch: int = 0
    seq: int = 0


def code() -> str:
    """Return 16 hexadecimal digits that change where the code that judges does; others each time if it is not whole."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    try:
        for package, name in _CODE:
            files = importlib.resources.files(package)
            for file in sorted(files.iterdir(), key=lambda one: one.name) if not name else [files.joinpath(name)]:
                if file.name.endswith(".py"):
                    digest.update(file.name.encode() + b"\0" + file.read_bytes())
        digest.update(importlib.metadata.version("common-expression-language").encode())  # which computes conditions
    except (OSError, importlib.metadata.PackageNotFoundError):  # it is being installed
        return secrets.token_hex(8)
    return digest.hexdigest()[:16]


class Saved:
    """The states of one service, which judges by `rules`."""

    def __init__(self, rules: Sequence[Rule], cluster: str) -> None:
        self.rules = tuple(rules)
        named = [[rule.name, rule.digest] for rule in rules]
        self._of = {"format": _FORMAT, "code": code(), "rules": named, "cluster": cluster}

    def packed(self, engine: Engine, recent: Recent, place: Place) -> tuple[str, bytes] | None:
        """Return what is to be kept, and what is said of it; None: it is too large."""
        packer, pieces, size = zlib.compressobj(1), [], 0
        for line in itertools.chain(state.lines(engine), [b"\n"], recent.lines()):
            size += len(line)
            pieces.append(packer.compress(line))
        pieces.append(packer.flush())
        body = b"".join(pieces)
        if len(body) > PACKED_MAX or size > LINES_MAX:
            _LOG.warning("what the rules know takes %d bytes, and is not kept: a restart will judge everything", size)
            return None
        said = {**self._of, "batch": place.batch, "seq": place.seq, "sha256": hashlib.sha256(body).hexdigest()}
        return json.dumps(said, separators=(",", ":")), body

    def restored(self, database: sa.Engine, archived: int = 0) -> tuple[Engine, Recent, Place]:
        """Return what the state in the store says, and of nothing where there is none that is of these rules.

        archived   the last batch that is in the archive

        Raises StoreError.
        """
        about = states.about(database)
        if about is not None:
            why = "it cannot be read"
            try:
                said = json.loads(about)
                why = self._refused(said, max(archived, states.last_batch(database)))
                if not why:
                    found = self._unpacked(states.body(database), said)
                    _LOG.info("rules go on behind batch %d", found[2].batch)
                    return found
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, zlib.error) as error:
                why = why or f"it cannot be read ({type(error).__name__})"
            _LOG.info("what the rules knew is not used, and everything is judged again: %s", why)
        return Engine(self.rules), Recent(), Place()

    def _refused(self, said: dict[str, Any], last: int) -> str:
        for what, words in (("format", "its format is another"), ("code", "the code has changed"),
                            ("rules", "the rules have changed"), ("cluster", "it is of another cluster")):  # fmt: skip
            if said[what] != self._of[what]:
                return words
        return "" if 0 < said["batch"] <= last else "it is of records that are not here"

    def _unpacked(self, body: bytes, said: dict[str, Any]) -> tuple[Engine, Recent, Place]:
        if hashlib.sha256(body).hexdigest() != said["sha256"]:
            raise ValueError("it is not as it was written")
        lines = _lines(body)
        collects = gc.isenabled()
        gc.disable()  # many objects come and none goes: to look for garbage meanwhile takes four times as long
        try:
            engine = state.restored(self.rules, itertools.takewhile(lambda line: line != b"", lines))
            recent = Recent()
            recent.resume(lines)
        finally:
            if collects:
                gc.enable()
        return engine, recent, Place(said["batch"], said["seq"])


def _lines(body: bytes) -> Iterator[bytes]:
    """Yield the lines of what was packed, without their ends."""
    unpacker, rest, size = zlib.decompressobj(), b"", 0
    view: Iterable[bytes] = (body[at : at + (1 << 16)] for at in range(0, len(body), 1 << 16))
    for piece in view:
        more = unpacker.decompress(piece)
        size += len(more)
        if size > LINES_MAX:
            raise ValueError("it is too large")
        *whole, rest = (rest + more).split(b"\n")
        yield from whole
