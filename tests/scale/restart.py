"""Prints how long a start takes until rules have judged all there is: `python -m tests.scale.restart [RECORDS]`.

10,000 node names, SQLite in a directory of its own, records of tests.scale.rules in batches of 40. Once everything is
judged, as without a state; then from the state that the end of the first run kept; and from one that is STALE records
old, as kill -9 leaves it. CPU time is of this process, which does little else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator

import sqlalchemy as sa
from piolet.central.ledger import Judge, Ledger
from piolet.central.recent import Watched
from piolet.central.saving import Saved
from piolet.central.store import states
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.events.envelope import Event

from tests.scale.fleets import catalogue
from tests.scale.rules import records
from tests.support.waiting import wait_until

STALE, BATCH, AT_ONCE = 20_000, 40, 100
RULES = catalogue("30min")


def fill(engine: sa.Engine, made: list[Event]) -> None:
    """Write records, as nodes' batches bring them: each has some of one stream, in order."""
    writer, streams, ready = Writer(engine), dict[str, list[Event]](), list[Arrival]()
    for one in made:
        stream = streams.setdefault(one.node, [])
        stream.append(one)
        if len(stream) >= BATCH:
            ready.append(Arrival(one.node, stream, one.time))
            del streams[one.node]
        if len(ready) >= AT_ONCE:
            writer.append(ready)
            ready = []
    writer.append([*ready, *(Arrival(node, stream, made[-1].time) for node, stream in streams.items())])


def numbered(made: Iterator[Event] | list[Event]) -> list[Event]:
    """Return records whose numbers are without gaps in each node's stream."""
    seqs: dict[str, int] = {}
    found = []
    for one in made:
        seqs[one.node] = seqs.get(one.node, 0) + 1
        found.append(Event(**{**one.__dict__, "seq": seqs[one.node]}))
    return found


def start(engine: sa.Engine) -> tuple[float, float, int]:
    """Have all judged, and end; return the seconds that it took, those of the CPU, and the bytes of the state."""
    begin, cpu = time.monotonic(), time.process_time()
    saved = Saved(RULES, "c")
    rules, recent, place = saved.restored(engine)
    judge = Judge(Reader(engine, "c"), Watched(rules, recent), after=place,
                  pack=lambda upto: saved.packed(rules, recent, upto))  # fmt: skip
    ledger = Ledger(Writer(engine), judge)
    ledger.start()
    judge.start(ledger)
    wait_until(lambda: judge.is_caught_up or judge.broken, 3600, "judging")
    took, spent = time.monotonic() - begin, time.process_time() - cpu
    judge.stop()
    ledger.stop()
    return took, spent, len(states.body(engine))


def main(words: list[str]) -> int:
    """Print a table."""
    many = int(words[0]) if words else 2_000_000
    with tempfile.TemporaryDirectory() as room:
        engine = connect(f"sqlite:///{room}/store.sqlite", create=True)
        made = numbered(records(many + STALE))
        fill(engine, made[:many])
        print("| records | start | seconds | of the CPU | state, packed |\n|---|---|---|---|---|")
        row(many, "of nothing: all is judged", *start(engine))
        row(many, "from the state", *start(engine))
        fill(engine, made[many:])
        row(many + STALE, f"from a state that is {STALE:,} records old", *start(engine))
        engine.dispose()
    return 0


def row(many: int, what: str, took: float, spent: float, size: int) -> None:
    """Print a row."""
    print(f"| {many:,} | {what} | {took:.1f} | {spent:.1f} | {size / 1e6:.1f} MB |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
