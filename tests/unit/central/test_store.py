"""The store, in SQLite and in PostgreSQL: each record once, in the order in which they came."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from piolet.base.errors import EventError
from piolet.central.conclusions import CLOSED, OPEN, Conclusion, decode
from piolet.central.store import bodies, wordings
from piolet.central.store.database import StoreError, alone, connect
from piolet.central.store.reader import Latest, Reader
from piolet.central.store.schema import METADATA
from piolet.central.store.writer import Arrival, Refused, Writer
from piolet.events.envelope import SEVERITIES, SOURCES, Event
from piolet.events.kinds import KINDS

A, B = "00000000000000aa", "00000000000000bb"
PAGES = "select page_count * page_size from pragma_page_count, pragma_page_size"
FULL = Event(
    "alps", "node1", A, 1, 1.7e9 + 0.123456, "vet.verdict", "user", boot="0b1c2d3e-0000-4000-8000-000000000000",
    severity="fatal", offset=-7.25, job=2**32 - 1, step="0+1", run=3, uid=2**32 - 2, subject="gpu:GPU-1",
    body={"value": 1.5, "state": "fail", "said": {"a": [None, True, "ü\\\"x"]}},
    more={"rack": {"row": 7}},
)  # fmt: skip


def event(seq: int, node: str = "node1", epoch: str = A, time: float = 1.7e9, **more: Any) -> Event:
    return Event("alps", node, epoch, seq, time, more.pop("kind", "node.heartbeat"), more.pop("source", "root"), **more)


def add(store: sa.Engine | Writer, *records: Event | Refused, node: str = "node1", **more: Any) -> Any:
    writer = store if isinstance(store, Writer) else Writer(store)
    (taken,) = writer.append([Arrival(node, records, more.pop("received", 1.7e9 + 1), **more)])
    return taken


def keys(store: sa.Engine) -> list[tuple[str, str, int]]:
    return [one.event.key for one in Reader(store, "alps").arrivals()]


@pytest.mark.filterwarnings("ignore:.*expression-based index")  # SQLAlchemy reads none back from SQLite
def test_the_tables_are_those_of_the_migrations(store: sa.Engine) -> None:
    with store.connect() as connection:
        assert not compare_metadata(MigrationContext.configure(connection), METADATA)


def test_a_record_comes_back_as_it_went_in(store: sa.Engine) -> None:
    plain = event(2)
    add(store, FULL, plain)
    assert [one.event for one in Reader(store, "alps").arrivals()] == [FULL, plain]
    assert Reader(store, "alps").record(*FULL.key) == FULL
    assert Reader(store, "alps").records("node1", 0, 10).events == [FULL, plain]
    assert Reader(store, "alps").record("node1", A, 3) is None
    assert Reader(store, "alps").records("node9", 0, 10) == Latest()


def test_records_of_every_kind_come_back(store: sa.Engine) -> None:
    rng = random.Random(1)
    records = [
        event(
            seq, kind=kind.name, source=rng.choice(SOURCES), severity=rng.choice(("", *SEVERITIES)),
            body={key: rng.choice([None, 1, 2.5, "x", [1]]) for key in kind.body},
        )
        for seq, kind in enumerate(KINDS.values(), 1)
    ]  # fmt: skip
    add(store, *records)
    assert [one.event for one in Reader(store, "alps").arrivals()] == records


def test_what_was_sent_again_is_left_out(store: sa.Engine) -> None:
    writer = Writer(store)
    assert add(writer, event(1), event(2)).have == {A: 2}
    again = add(writer, event(1), event(2), event(3), event(3))
    assert again.have == {A: 3} and [one.event.seq for one in again.stored] == [3]
    assert add(Writer(store), event(2), event(3)).stored == []
    assert keys(store) == [("node1", A, seq) for seq in (1, 2, 3)]


def test_a_hole_is_not_taken(store: sa.Engine) -> None:
    taken = add(store, event(1), event(3), event(1, epoch=B))
    assert taken.missing and taken.have == {A: 1, B: 1}
    assert keys(store) == [("node1", A, 1), ("node1", B, 1)]


def test_what_its_node_has_no_more_is_written_down(store: sa.Engine) -> None:
    writer = Writer(store)
    add(writer, event(1))
    assert add(writer, event(6), gone={A: 5}).have == {A: 6}
    assert add(writer, event(6), gone={A: 5}).have == {A: 6}
    reader = Reader(store, "alps")
    assert [(one["first"], one["last"]) for one in reader.gaps("node1")] == [(2, 5)]
    counted = {"records": 2, "gone": 4, "lost": 0, "dropped": 0, "batches": 2, "conclusions": 0}
    assert reader.counted() == counted


def test_what_nodes_say_that_they_lost_is_added_up_once(store: sa.Engine) -> None:
    writer = Writer(store)
    told = [event(1, kind="spool.lost", body={"records": 5}), event(2, kind="spool.dropped", body={"records": 7})]
    add(writer, *told)
    add(Writer(store), *told, event(3, kind="spool.lost", body={"records": 2}), event(4, kind="spool.lost"))
    counted = Reader(store, "alps").counted()
    assert (counted["lost"], counted["dropped"], counted["records"]) == (7, 7, 4)


def test_refused_records_are_passed_over(store: sa.Engine) -> None:
    taken = add(store, event(1), Refused(A, 2, "no"), Refused(A, 3, "no"), event(4))
    assert taken.have == {A: 4} and not taken.missing
    assert [(one["first"], one["last"], one["why"]) for one in Reader(store, "alps").gaps("node1")] == [(2, 3, "no")]
    assert [seq for _, _, seq in keys(store)] == [1, 4]


def test_nodes_with_the_same_epoch_are_apart(store: sa.Engine) -> None:
    writer = Writer(store)
    add(writer, event(1))
    assert add(writer, event(1, node="node2"), node="node2").have == {A: 1}
    assert keys(store) == [("node1", A, 1), ("node2", A, 1)]


def test_one_bad_batch_undoes_those_it_was_written_with(store: sa.Engine) -> None:
    """And the numbers that were remembered with it."""
    writer = Writer(store)
    writer.take_own([event(7, epoch=B, node="node2")], 1.0)
    with pytest.raises(EventError, match="own"):
        writer.append([Arrival("node1", [event(1)], 1.0), Arrival("node2", [event(1, "node2", B)], 1.0)])
    assert keys(store) == [("node2", B, 7)]
    assert add(writer, event(1)).have == {A: 1}
    assert keys(store) == [("node2", B, 7), ("node1", A, 1)]


def test_two_writers_do_not_keep_a_record_twice(store: sa.Engine) -> None:
    """Each has read up to where the stream is; what the second one adds would be there twice, in other pieces."""
    first, second = Writer(store), Writer(store)
    for writer in (first, second):
        add(writer, event(1))
    add(first, event(2), event(3))
    with pytest.raises(StoreError, match="another process"):
        add(second, event(2))
    assert keys(store) == [("node1", A, seq) for seq in (1, 2, 3)]
    assert add(second, event(2), event(3), event(4)).have == {A: 4}
    assert keys(store) == [("node1", A, seq) for seq in (1, 2, 3, 4)]


def test_own_records_have_any_order(store: sa.Engine) -> None:
    writer = Writer(store)
    assert [one.event.seq for one in writer.take_own([event(9, epoch=B), event(4, epoch=B)], 1.0)] == [9, 4]
    assert [
        one.event.seq for one in writer.take_own([event(9, epoch=B), event(5, epoch=B), event(5, epoch=B)], 2.0)
    ] == [5]
    assert [seq for _, _, seq in keys(store)] == [9, 4, 5]
    assert Reader(store, "alps").have("node1") == {}
    assert Reader(store, "alps").counted()["records"] == 3


def test_arrivals_after_a_batch_and_over_many_pieces(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piolet.central.store.reader._PIECE", 3)
    writer = Writer(store)
    for seq in range(1, 21):
        add(writer, event(seq))
    found = list(Reader(store, "alps").arrivals())
    assert [one.event.seq for one in found] == list(range(1, 21))
    assert [one.event.seq for one in Reader(store, "alps").arrivals(found[14].batch)] == list(range(16, 21))


@pytest.fixture
def long(store: sa.Engine) -> list[Event]:
    """The records of a stream of many parts and of a hole, in batches of 1 to 500."""
    rng, writer, records = random.Random(3), Writer(store), [event(1, kind="node.start")]
    add(writer, *records)
    for many in (500, *(rng.choice((1, 1, 3, 40)) for _ in range(60)), 499):
        first = records[-1].seq + (1 if many != 3 else 10**6)
        piece = [event(seq, time=1.7e9 + seq, kind="node.start") for seq in range(first, first + many)]
        add(writer, *piece, gone={A: first - 1}, received=piece[-1].time + 1)
        records += piece
    writer.take_own([event(2**57 + number, epoch=B, time=1.6e9 + number) for number in range(9)], 1.6e9 + 99)
    return records


@pytest.mark.parametrize("most", [1, 30, 700, 10**6])
def test_a_nodes_last_records(store: sa.Engine, long: list[Event], most: int) -> None:
    reader = Reader(store, "alps")
    found = reader.records("node1", 1.65e9, most)
    assert found.events == long[::-1][:most] and found.whole == (most > len(long))
    since = long[-400].time
    assert reader.records("node1", since, most).events == long[:-401:-1][:most]
    assert len(reader.records("node1", 0, 10**6).events) == len(long) + 9


def test_each_record_is_found_in_its_batch(store: sa.Engine, long: list[Event]) -> None:
    reader = Reader(store, "alps")
    for one in (*long[::7], *long[:3], *long[-3:]):
        assert reader.record(*one.key) == one
    assert reader.record("node1", A, long[-1].seq + 1) is None
    assert reader.record("node1", A, 10**6 // 2) is None
    found = reader.record("node1", B, 2**57 + 4)
    assert found is not None and found.time == 1.6e9 + 4


def test_looking_for_records_takes_the_index(store: sa.Engine, long: list[Event]) -> None:
    """Of both its columns: a stream that has a heartbeat a minute has half a million batches in a year."""
    asked: list[tuple[str, Any]] = []
    sa.event.listen(store, "before_cursor_execute", lambda *said: asked.append((said[2], said[3])))
    reader = Reader(store, "alps")
    reader.records("node1", long[-10].time, 10)
    reader.record(*long[5].key)
    Writer(store).take_own([event(2**57, epoch=B)], 1.0)
    wanted = [one for one in asked if "FROM batches" in one[0] and "max(" not in one[0] and "/ 256" in one[0]]
    assert len(wanted) >= 3
    lite = store.dialect.name == "sqlite"
    with store.connect() as connection:
        if not lite:
            connection.exec_driver_sql("set enable_seqscan = off")
        for text, bound in wanted:
            rows = connection.exec_driver_sql(f"{'explain query plan' if lite else 'explain'} {text}", bound)
            plan = "\n".join(str(row[-1]) for row in rows)
            assert "ix_batches_part" in plan and ("<expr>" if lite else "(first / 256)") in plan, plan


def test_a_heartbeat_that_comes_alone_takes_little(store: sa.Engine) -> None:
    """150 bytes on the disk with indexes, in both data bases; what the empty one takes is not counted."""
    writer, rng, many = Writer(store), random.Random(1), 4000

    def size() -> int:
        with store.connect() as connection:
            if store.dialect.name == "sqlite":
                return int(connection.scalar(sa.text(PAGES)) or 0)
            return int(connection.scalar(sa.text("select pg_total_relation_size('batches')")) or 0)

    before = size()
    for number in range(0, many, 20):
        arrivals = []
        for one in range(number, number + 20):
            node, time = one % 100, 1.7e9 + 60 * number + rng.random()
            beat = event(one // 100 + 1, f"n{node}", f"{node:016x}", time, boot=FULL.boot, body={"uptime_s": one})
            arrivals.append(Arrival(beat.node, [beat], time + 1, {}, rng.gauss(0, 0.2)))
        writer.append(arrivals)
    assert (size() - before) / many <= 150


@pytest.mark.parametrize(
    ("measured", "own", "at"), [(3600.0, None, 1.7e9 - 3600), (1.0, None, 1.7e9), (3600.0, 10.0, 1.7e9 - 10)]
)
def test_a_clock_that_is_off(store: sa.Engine, measured: float, own: float | None, at: float) -> None:
    """The record's own offset comes first; one below a few seconds is the message's way."""
    one = event(1, offset=own)
    (stored,) = add(store, one, offset=measured).stored
    assert stored.at == at
    assert list(Reader(store, "alps").arrivals()) == [stored]


def test_nothing_happens_later_than_it_came(store: sa.Engine) -> None:
    (stored,) = add(store, event(1, time=1.7e9 + 500)).stored
    assert stored.at == stored.received


def conclusion(state: str = OPEN, case: str = "0123456789abcdef") -> Conclusion:
    return Conclusion(
        case,
        "rule",
        "0" * 16,
        "alps",
        "node1",
        "",
        1.7e9,
        state,
        "note",
        "a sentence",
        (("node1", A, 1),),
        {"count": 2},
    )


def test_conclusions_are_written_once(store: sa.Engine) -> None:
    writer = Writer(store)
    add(writer, event(1))
    both = [(conclusion(), 1), (conclusion(CLOSED), 1)]
    assert wordings.conclude(writer, both, 1.0) == 2
    assert wordings.conclude(Writer(store), both, 2.0) == 0
    reader = Reader(store, "alps")
    assert [decode(line) for line in reader.conclusions("node1")] == [conclusion(), conclusion(CLOSED)]
    assert reader.conclusions("node2") == [] and len(reader.conclusions(case="0123456789abcdef")) == 2


def test_notes(store: sa.Engine) -> None:
    writer = Writer(store)
    add(writer, event(1))
    wordings.conclude(writer, [(conclusion(), 1)], 1.0)
    wordings.say(writer, "note", "looked at", 7, 2.0, node="node1")
    wordings.say(writer, "ack", "seen", 8, 3.0, case="0123456789abcdef")
    reader = Reader(store, "alps")
    assert [(one["kind"], one["uid"], one["text"]) for one in reader.notes("node1")] == [
        ("note", 7, "looked at"),
        ("ack", 8, "seen"),
    ]
    assert [one["kind"] for one in reader.notes(case="0123456789abcdef")] == ["ack"]
    for wrong in ({"node": "node9"}, {"case": "x"}):
        with pytest.raises(EventError):
            wordings.say(writer, "note", "x", 7, 2.0, **wrong)
    for text in ("", " ", "a\nb", "\x1b[1m", "x" * 2001):
        with pytest.raises(EventError):
            wordings.say(writer, "note", text, 7, 2.0, node="node1")


def test_cursors(store: sa.Engine) -> None:
    writer = Writer(store)
    assert wordings.cursor(writer, "x") is None
    wordings.set_cursor(writer, "x", 1.5)
    wordings.set_cursor(writer, "x", 2.5)
    assert wordings.cursor(writer, "x") == 2.5


def test_there_is_one_writer(store: sa.Engine) -> None:
    with alone(store), pytest.raises(EventError, match="another"), alone(connect(str(store.url), create=True)):
        pass
    with alone(store):
        pass


def test_a_store_of_a_later_release(store: sa.Engine) -> None:
    with store.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(EventError, match="later release"):
        connect(store.url.render_as_string(hide_password=False), create=True)


@pytest.mark.parametrize("body", [{}, {"a": 1}, FULL.body, {"text": "x" * 10000}, {"\x00": ["\ud800"]}])
def test_runs_come_back(body: dict[str, Any]) -> None:
    one: list[Any] = [0, 1.5, 3, 1, body]
    for run in ([one], [one, [1, 1.75, 4, 2]] * 200):
        assert bodies.unpack_run(bodies.pack_run(run)) == run


def test_a_run_of_a_later_release_or_damaged() -> None:
    for data in (b"\x07abc", b"", b"\x02\xff\xff", b"\x00{"):
        with pytest.raises(EventError):
            bodies.unpack_run(data)


def test_the_dictionaries_are_those_of_the_releases() -> None:
    """With another one nothing of a store can be read."""
    digests = {number: hashlib.sha256(text).hexdigest()[:16] for number, text in bodies._DICTIONARIES.items()}
    assert digests == {1: "7669244f3ad3f7f7", 2: "dc9aa4bb7db46601"}


def test_what_a_random_sender_does(store: sa.Engine) -> None:
    """Whatever is sent twice, in what pieces, over restarts of the writer: the store is what was sent."""
    rng = random.Random(5)
    writer = Writer(store)
    sent = {A: 0, B: 0}
    for _ in range(120):
        epoch = rng.choice((A, B))
        first = rng.randint(max(1, sent[epoch] - 3), sent[epoch] + 2)
        records = [event(seq, epoch=epoch) for seq in range(first, first + rng.randint(1, 5))]
        taken = add(writer, *records)
        if first <= sent[epoch] + 1:
            sent[epoch] = max(sent[epoch], records[-1].seq)
        assert taken.have[epoch] == sent[epoch] and taken.missing == (first > sent[epoch] + 1)
        if rng.random() < 0.1:
            writer = Writer(store)
    found = keys(store)
    assert sorted(found) == sorted(("node1", epoch, seq) for epoch in sent for seq in range(1, sent[epoch] + 1))
