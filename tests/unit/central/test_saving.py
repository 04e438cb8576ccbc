"""What the rules know is kept and taken up again: the same is concluded, and nothing is used that is not whole."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from piolet.central import ledger as ledgers
from piolet.central import rulefiles, saving
from piolet.central.conclusions import Conclusion, encode
from piolet.central.ledger import Judge, Ledger
from piolet.central.recent import Recent, Watched
from piolet.central.rules import state
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule
from piolet.central.saving import Place, Saved
from piolet.central.store import database, states
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.events.envelope import Event

from tests.simulators import fleet, fleet3
from tests.support.waiting import wait_until
from tests.unit.central.making import CATALOGUE, event, rules

RULES = rules(CATALOGUE, missing='"20h"')


def _history(seed: int) -> list[tuple[float, Event]]:
    plan = fleet.Fleet(nodes=120, days=15, rate=5e-3, largest=32)
    return fleet3.simulate(seed, plan)[0] if seed % 2 else fleet.simulate(seed, plan)[0]


def _copied(engine: Engine) -> Engine:
    return state.restored(RULES, state.lines(engine))


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_is_kept_at_any_point_concludes_the_same(seed: int) -> None:
    """Byte for byte, wherever it was kept, and however often."""
    history, draw = _history(seed), random.Random(seed)
    whole, kept = Engine(RULES), Engine(RULES)
    said, again = [], []
    points = set(draw.sample(range(len(history)), 12))
    for number, (received, each) in enumerate(history):
        if number in points:
            kept = _copied(kept)
        said += [encode(one) for one in whole.take(each, received)]
        again += [encode(one) for one in kept.take(each, received)]
    assert again == said
    assert len(said) > 50
    assert (kept.open, kept.troubles, kept.revets.refused) == (whole.open, whole.troubles, whole.revets.refused)
    assert list(state.lines(kept)) == list(state.lines(whole))


@pytest.mark.parametrize(("bound", "before"), [({"alone": "2"}, 2), ({"together": '"30s"'}, 1)])
def test_nodes_that_were_struck_together_still_are(bound: dict[str, str], before: int) -> None:
    """So many saw it before the engine was kept, and one more after: then it is none of theirs."""
    text = rules(**bound, settle='"10min"', when='"count >= 1"')
    engine = Engine(text)
    for number in range(before):
        engine.take(event("link.flap", 0, f"n{number}"))
    kept = state.restored(text, state.lines(engine))
    assert kept.take(event("link.flap", 1, "another")) == []
    assert kept.wait(kept.now + 3600) == []
    assert len(engine.wait(engine.now + 3600)) == before


def test_recent_failures_are_kept() -> None:
    first, second = Recent(), Recent()
    draw = random.Random(3)
    for number in range(2000):
        body = {"status": 1, "why": "exit"} if number % 3 else {"signal": 9, "why": "signal"}
        one = event("step.outcome", number * 60, f"n{draw.randrange(9)}", uid=draw.randrange(5), job=1 + number // 4,
                    step="0", run=draw.randrange(2), body=body)  # fmt: skip
        first.take(one, one.time)
    second.resume(first.lines())
    assert list(second.lines()) == list(first.lines())
    now = one.time
    for node in (f"n{i}" for i in range(9)):
        assert second.failed(node, now) == first.failed(node, now)
    found = 0
    for job, uid in itertools.product(range(1, 500, 7), range(5)):
        mine, theirs = (one.step((uid, job, "0")) for one in (first, second))
        assert mine == theirs
        if mine is not None:
            assert first.others(mine) == second.others(mine)
            found += 1
    assert found > 50
    assert second.__dict__.keys() == first.__dict__.keys()
    of_user, before = ({name: set(keys) for name, keys in one._of_user.items()} for one in (second, first))
    assert of_user == before
    assert second._counts == first._counts


class Service:
    """Ledger and judge of one store, as the service has them."""

    def __init__(self, store: sa.Engine, which: Sequence[Rule] = RULES, cluster: str = "fleet") -> None:
        saved = Saved(which, cluster)
        self.engine, self.recent, self.place = saved.restored(store)
        self.judged = 0
        service = self

        class Counted(Watched):
            def take(self, event: Event, received: float | None = None) -> Any:
                service.judged += 1
                return super().take(event, received)

        self.judge = Judge(
            Reader(store, "fleet"), Counted(self.engine, self.recent), after=self.place,
            pack=lambda place: saved.packed(self.engine, self.recent, place),
        )  # fmt: skip
        self.ledger = Ledger(Writer(store), self.judge)
        self.ledger.start()
        self.judge.start(self.ledger)

    def add(self, pieces: Sequence[tuple[float, Event]]) -> None:
        waiting = [self.ledger.add(Arrival(one.node, [one], received)) for received, one in pieces]
        for one in waiting:
            one.result(120)

    def caught_up(self) -> Service:
        wait_until(lambda: self.judge.is_caught_up or self.judge.broken, 120, "judging")
        assert not self.judge.broken
        return self

    def stop(self) -> None:
        self.judge.stop()
        self.ledger.stop()

    def kept(self) -> None:
        """Wait until a state of all that was added is kept."""
        self.caught_up()
        wait_until(lambda: self.judge._saved.batch == self.judge.batch > 0, 120, "a state")

    def killed(self) -> None:
        """End as kill -9 does: nothing is kept any more."""
        self.judge._pack = None
        self.stop()


@pytest.fixture
def history() -> list[tuple[float, Event]]:
    made, _ = fleet.simulate(12, fleet.Fleet(nodes=40, days=12, rate=2e-2, largest=8, lost=0, twice=0, late=0))
    return [(received, one) for received, one in made if not one.kind.startswith(("slurm.", "site."))][:800]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state is kept whenever it can be."""
    monkeypatch.setattr(ledgers, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(ledgers, "SAVE_SHARE", 0.0)
    yield


def _concluded(store: sa.Engine) -> list[bytes]:
    return Reader(store, "fleet").conclusions()


def _expected(store: sa.Engine, which: Sequence[Rule] = RULES) -> list[bytes]:
    engine = Engine(which)
    found: list[Conclusion] = []
    for one in Reader(store, "fleet").arrivals():
        found += engine.take(one.event, one.received)
    return [encode(one) for one in found]


def test_a_restart_judges_what_came_since(store: sa.Engine, history: list[tuple[float, Event]]) -> None:
    first = Service(store)
    first.add(history[:500])
    first.caught_up().stop()
    second = Service(store)
    assert second.place.batch == first.judge.batch > 0
    second.add(history[500:])
    second.caught_up().stop()
    assert second.judged == sum(1 for one in Reader(store, "fleet").arrivals(second.place.batch))
    assert _concluded(store) == _expected(store)
    assert len(_concluded(store)) > 12


@pytest.mark.usefixtures("often")
def test_killed_between_two_states_it_loses_nothing_and_concludes_nothing_twice(
    store: sa.Engine, history: list[tuple[float, Event]]
) -> None:
    at, went_on = 0, 0
    for piece in (200, 1, 250, 7, 150, 192):
        service = Service(store)
        went_on += service.place.batch > 0
        service.add(history[at : at + piece // 2])
        if piece > 100:
            service.kept()
        service.add(history[at + piece // 2 : at + piece])
        at += piece
        service.killed()
    Service(store).caught_up().stop()
    assert went_on > 2
    assert _concluded(store) == _expected(store)
    assert len(_concluded(store)) == len(set(_concluded(store))) > 12


@pytest.mark.usefixtures("often")
def test_nothing_is_kept_before_what_was_concluded_is_written(
    store: sa.Engine, history: list[tuple[float, Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data base takes no conclusions while the service ends: the next one has to draw them again."""
    first = Service(store)

    def unwritten(ledger: Ledger, found: object) -> None:
        first.judge._unwritten = True

    monkeypatch.setattr(first.judge, "_write", unwritten)
    first.add(history)
    first.caught_up().stop()
    assert _concluded(store) == []
    second = Service(store)
    second.caught_up().stop()
    assert _concluded(store) == _expected(store)


def _refused(store: sa.Engine, caplog: pytest.LogCaptureFixture, **other: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, "piolet-central"):
        engine, _, place = Saved(other.get("which", RULES), other.get("cluster", "fleet")).restored(store)
    assert (place, engine.nodes) == (Place(), {})
    return caplog.messages[-1].rpartition(": ")[2]


def test_a_state_of_other_rules_code_or_records_is_not_used(
    store: sa.Engine,
    history: list[tuple[float, Event]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Saved(RULES, "fleet").restored(store)[2] == Place()
    first = Service(store)
    first.add(history[:300])
    first.caught_up().stop()
    assert Saved(RULES, "fleet").restored(store)[2].batch > 0
    changed = rules(CATALOGUE, missing='"21h"')
    assert _refused(store, caplog, which=changed) == "the rules have changed"
    assert _refused(store, caplog, which=RULES[1:]) == "the rules have changed"
    assert _refused(store, caplog, cluster="other") == "it is of another cluster"
    monkeypatch.setattr(saving, "code", lambda: "0" * 16)
    assert _refused(store, caplog) == "the code has changed"
    monkeypatch.undo()
    about, body = states.about(store), states.body(store)
    assert about is not None
    for bad, said in (
        (body[:-1], "it cannot be read (ValueError)"), (b"", "it cannot be read (ValueError)"),
        (bytes([body[0] ^ 1]) + body[1:], "it cannot be read (ValueError)"),
    ):  # fmt: skip
        states.put(Writer(store), about, bad)
        assert _refused(store, caplog) == said
    for word in ("{", "[]", "{}", "null"):
        states.put(Writer(store), word, body)
        assert _refused(store, caplog).startswith("it cannot be read")
    states.put(Writer(store), about, body)
    assert Saved(RULES, "fleet").restored(store)[2].batch > 0
    with store.begin() as connection:  # as if a part of the store had been restored
        connection.execute(sa.text("delete from batches where id > 10"))
    assert _refused(store, caplog) == "it is of records that are not here"


def test_the_code_that_judges_is_known_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a release is being installed a file may be away: then no state is of this code, and the service starts."""
    known = saving.code()
    assert saving.code() == known
    assert len(known) == 16
    monkeypatch.setattr(saving, "_CODE", (*saving._CODE, ("piolet.events", "gone.py")))
    assert len({saving.code(), saving.code(), known}) == 3
    monkeypatch.setattr(saving, "_CODE", saving._CODE[1:-1])
    assert saving.code() != known


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    saved, engine = Saved(RULES, "fleet"), Engine(RULES)
    for received, one in _history(0)[:3000]:
        engine.take(one, received)
    packed = saved.packed(engine, Recent(), Place(3, 4))
    assert packed is not None
    assert len(packed[1]) < 3000 * 100
    monkeypatch.setattr(saving, "LINES_MAX", 1000)
    assert saved.packed(engine, Recent(), Place(3, 4)) is None
    assert "a restart will judge everything" in caplog.text


def test_an_older_store_has_none_and_gets_one(url: str) -> None:
    store = sa.create_engine(url)
    with store.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    store.dispose()
    again = database.connect(url, create=True)
    assert states.about(again) is None
    again.dispose()


def test_an_engine_that_knows_nothing_can_be_kept() -> None:
    engine = Engine(rulefiles.read())
    assert list(state.lines(state.restored(engine.rules, state.lines(engine)))) == list(state.lines(engine))


def test_a_watched_engine_tells_what_is_open() -> None:
    engine = Engine(rules(when='"count >= 1"'))
    watched = Watched(engine, Recent())
    (opened,) = watched.take(event("link.flap", 0), None)
    assert watched.open == {opened.case}
