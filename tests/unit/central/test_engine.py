"""How the engine counts: at an event's own time, bursts once, the same whatever came twice, late or in disorder."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest
from piolet.central.conclusions import CLOSED, OPEN, decode, encode
from piolet.central.rules.engine import Engine
from piolet.events.envelope import FATAL, SITE, USER, Event

from tests.simulators import fleet
from tests.unit.central.making import (
    CATALOGUE,
    DAY,
    HOUR,
    MINUTE,
    START,
    again,
    concluded,
    event,
    of_catalogue,
    rules,
    waited,
)


def _flaps(*after: float, **rest: Any) -> list[Event]:
    return [event("link.flap", one, **rest) for one in after]


def test_three_in_an_hour() -> None:
    out = concluded(rules(), _flaps(0, 20 * MINUTE, 50 * MINUTE))
    assert [one.sentence for one in out] == ["n1: flaps: 3 times in 1 hour"]
    assert out[0].time == START + 50 * MINUTE
    assert out[0].values == {"count": 3}
    assert concluded(rules(), _flaps(0, 20 * MINUTE, 60 * MINUTE)) == []


def test_an_open_case_is_opened_once() -> None:
    assert len(concluded(rules(), _flaps(*(MINUTE * i for i in range(50))))) == 1


def test_nodes_are_told_apart() -> None:
    events = [event("link.flap", i * 300, f"n{i % 2}") for i in range(5)]
    assert [one.node for one in concluded(rules(), events)] == ["n0"]


def test_a_burst_counts_once() -> None:
    assert concluded(rules(burst='"5min"'), _flaps(*range(299))) == []
    assert concluded(rules(burst='"5min"'), _flaps(0, 1, 2, 300, 301, 1000))


def test_bursts_of_two_subjects_are_two() -> None:
    events = [event("link.flap", 0, subject=f"port:{one}") for one in "abc"]
    assert concluded(rules(), events)
    assert concluded(rules(per='["subject"]'), events) == []


def test_a_late_event_completes_what_was_before() -> None:
    first, second, late = _flaps(0, 50 * MINUTE, 25 * MINUTE)
    engine = Engine(rules())
    assert engine.take(first) + engine.take(second) == []
    (out,) = engine.take(late, START + 10 * DAY)
    assert out.time == START + 50 * MINUTE
    assert out.records == (first.key, late.key, second.key)


def test_late_events_alone_do_not_reach_into_another_window() -> None:
    engine = Engine(rules())
    taken = [engine.take(one, START + 10 * DAY + i) for i, one in enumerate(_flaps(0, 5 * HOUR, 10 * HOUR, 15 * HOUR))]
    assert not any(taken)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_arrival_and_copies_change_nothing(seed: int) -> None:
    draw = random.Random(seed)
    events = _flaps(*(draw.uniform(0, 6) * HOUR for _ in range(7)))
    engine = Engine(rules())
    whole = [one for each in sorted(events, key=lambda one: one.time) for one in engine.take(each)]
    mixed = events * 3
    draw.shuffle(mixed)
    engine = Engine(rules())
    other = [one for each in mixed for one in engine.take(each, START + DAY)]
    assert [one.node for one in other] == [one.node for one in whole]


def test_a_clock_that_is_off_by_an_hour_is_in_no_wrong_window() -> None:
    events = [event("link.flap", after + HOUR, offset=HOUR) for after in (0.0, 20 * MINUTE, 50 * MINUTE)]
    events[1] = event("link.flap", 20 * MINUTE - HOUR, offset=-HOUR)
    (out,) = concluded(rules(), events)
    assert out.time == START + 50 * MINUTE
    wrong = [event("link.flap", 0), event("link.flap", HOUR + 5 * MINUTE, offset=0.0), event("link.flap", 70 * MINUTE)]
    assert concluded(rules(), wrong) == []


def test_nothing_happens_later_than_it_is_told() -> None:
    engine = Engine(rules())
    ahead = [event("link.flap", 9 * HOUR), event("link.flap", 18 * HOUR), event("link.flap", 27 * HOUR)]
    taken = [one for i, each in enumerate(ahead) for one in engine.take(each, START + i * 20 * MINUTE)]
    assert [one.time for one in taken] == [START + 40 * MINUTE]


def test_a_repair_starts_the_count_anew_and_closes() -> None:
    text = rules(when='"count >= 3"')
    first = concluded(text, [*_flaps(0, 300), event("site.repair", 400), *_flaps(500, 600)])
    assert first == []
    out = concluded(text, [*_flaps(0, 300, 600), event("site.repair", 700), *_flaps(800, 900)])
    assert [(one.state, one.sentence) for one in out][1:] == [("closed", "n1: flaps: it was repaired")]
    out = concluded(text, [*_flaps(0, 300, 600), event("site.repair", 700), *_flaps(800, 900, 1000)])
    assert [one.state for one in out] == ["open", "closed", "open"]
    assert out[2].case != out[0].case


def test_a_repair_of_before_that_comes_late_closes_nothing() -> None:
    out = concluded(rules(), [*_flaps(0, 300, 600), event("site.repair", 500)])
    assert [one.state for one in out] == ["open"]


def test_quiet_closes_when_nothing_more_comes() -> None:
    engine = Engine(rules(recovery='["quiet 2h"]'))
    out = [one for each in _flaps(0, 300, 600, 3000) for one in engine.take(each)]
    assert [one.state for one in waited(engine, 3000 + 2 * HOUR - 1)] == []
    (closed,) = waited(engine, 3000 + 2 * HOUR + 100)
    assert (closed.case, closed.time) == (out[0].case, START + 3000 + 2 * HOUR)


def test_somebody_acknowledges_one_case() -> None:
    engine = Engine(rules(recovery='["ack"]'))
    (out,) = [one for each in _flaps(0, 300, 600) for one in engine.take(each)]
    assert engine.take(event("site.note", 700, body={"case": "0" * 16})) == []
    assert engine.take(event("site.note", 700, body={"text": "?"})) == []
    assert [one.state for one in engine.take(event("site.note", 700, body={"case": out.case}))] == ["closed"]


def test_what_befalls_many_nodes_is_not_the_nodes() -> None:
    text = rules(alone="2", settle='"1min"')

    def storm(nodes: int) -> list[Event]:
        return [event("link.flap", 600 * i + j, f"n{j}") for i in range(3) for j in range(nodes)]

    assert {one.node for one in concluded(text, storm(2), until=HOUR)} == {"n0", "n1"}
    assert concluded(text, storm(3), until=HOUR) == []


def test_the_same_step_is_one_group_however_long_it_takes() -> None:
    text = rules(events='["step.outcome"]', alone="2", settle='"30min"', when='"jobs >= 3"', then='"revet"')

    def died(nodes: int) -> list[Event]:
        events = [event("step.outcome", 900 * i + 250 * j, f"n{j}", job=i + 1, step="0", uid=i) for i in range(3)
                  for j in range(nodes)]  # fmt: skip
        return sorted(events, key=lambda one: one.time)

    assert len(concluded(text, died(2), until=DAY)) == 2
    assert concluded(text, died(3), until=DAY) == []


def test_tasks_that_were_ended_since_others_failed_are_nobodys_fault() -> None:
    rule = of_catalogue("steps-of-three-users")

    def died(**body: object) -> list[Event]:
        return [event("step.outcome", i * 3600, uid=i, job=i + 1, step="0", body=body) for i in range(3)]

    assert concluded([rule], died(why="signal", signal=6), until=DAY)
    assert concluded([rule], died(why="exit", status=1), until=DAY)
    for body in ({"why": "signal", "signal": 9}, {"why": "signal", "signal": 15}, {"why": "exit", "status": 0},
                 {"why": "exit", "status": 143}, {"why": "exit", "status": 137}, {"why": "exit", "status": 130},
                 {"why": "time_limit"}, {"why": "other"}, {}):  # fmt: skip
        assert concluded([rule], died(**body), until=DAY) == [], body


def _died(number: int, node: str, **rest: Any) -> Event:
    return event("step.outcome", number * 600, node, **{"uid": number % 7, "job": 5, "step": "0", "run": 0, **rest})


def test_heterogeneous_requeued_and_array_jobs_are_told_apart() -> None:
    text = rules(events='["step.outcome"]', alone="2", settle='"1min"', when='"count >= 1"', then='"revet"')
    parts = [_died(0, f"n{i}", step=f"0+{i}") for i in range(3)]
    assert concluded(text, parts, until=HOUR) == [], "one step of three components"
    runs = [_died(0, f"n{i}", run=i) for i in range(3)]
    assert len(concluded(text, runs, until=HOUR)) == 3, "three runs, each on another node"
    tasks = [_died(0, f"n{i}", job=10 + i) for i in range(3)]
    assert len(concluded(text, tasks, until=HOUR)) == 3, "three tasks of an array have numbers of their own"
    components = [_died(0, f"n{i}", job=10 + i, uid=7, body={"het_job": 10} if i else {}) for i in range(3)]
    assert concluded(text, components, until=HOUR) == [], "three components of one job"
    theirs = [_died(0, "n9", job=10, uid=8), *components[1:]]
    assert len(concluded(text, theirs, until=HOUR)) == 3, "nobody makes another's job a part of his own"
    text = rules(events='["step.outcome"]', when='"jobs >= 2"', then='"revet"', window='"7d"')
    assert concluded(text, [_died(i, "n1", run=i) for i in range(4)]) == [], "one job, requeued"
    assert concluded(text, [_died(i, "n1", job=10 + i) for i in range(2)])
    components = [_died(i, "n1", job=10 + i, uid=7, body={"het_job": 10} if i else {}) for i in range(3)]
    assert concluded(text, components) == [], "components of one job"
    text = rules(events='["slurm.job_end"]', when='"jobs >= 2"', then='"revet"', window='"7d"')
    ends = [
        event("slurm.job_end", i, "n1", job=10 + i, uid=7, source="user", body={"array": f"10+{i}"}) for i in (0, 1)
    ]
    assert concluded(text, ends) == [], "and by the accounting"
    assert concluded(text, [event("slurm.job_end", i, "n1", job=10 + i, uid=7, source="user") for i in (0, 1)])


def test_what_programs_of_one_user_bring_about_at_once_is_of_no_node_alone() -> None:
    """The kernel names the job of one component. Other users' programs hide nothing of it."""
    text = rules(events='["gpu.xid"]', alone="2", settle='"1min"', burst='"3min"', when='"count >= 1"', then='"revet"')

    def fault(node: int, uid: int) -> Event:
        return event("gpu.xid", node, f"n{node}", uid=uid, job=10 + node, step="0", body={"xid": 31})

    assert concluded(text, [fault(node, 7) for node in range(3)], until=HOUR) == []
    assert len(concluded(text, [fault(node, 7 + node) for node in range(3)], until=HOUR)) == 3


def test_what_is_judged_at_once_is_not_what_waits() -> None:
    engine = Engine(rules(settle='"10min"'))
    assert [one for each in _flaps(0, 300, 600) for one in engine.take(each)] == []
    assert waited(engine, 1100) == []
    assert [one.time for one in waited(engine, 1300)] == [START + 600]


def test_a_node_that_saves_power_is_no_offender() -> None:
    text = rules(events='["slurm.node_state"]', where='\'state in ["down", "drain"]\'')

    def says(*states: str) -> list[Event]:
        return [event("slurm.node_state", 300 * i, body={"state": one}) for i, one in enumerate(states)]

    assert concluded(text, says("down", "down", "down"))
    assert concluded(text, says("powered_down", "down", "down", "down")) == []
    assert concluded(text, says("POWERING_DOWN", "down", "powered_down", "down", "resume", "down", "down")) == []
    assert concluded(text, says("powered_down", "resume", "down", "down", "down"))


SILENT = {"events": '["node.heartbeat"]', "missing": '"30min"', "when": '"count >= 1"', "recovery": '["heard"]'}


def _beats(node: str, *after: float) -> list[Event]:
    return [event("node.heartbeat", one, node) for one in after]


def test_a_node_that_powers_down_is_not_silent() -> None:
    asleep = [*_beats("n1", 0), event("slurm.node_state", 60, body={"state": "powered_down"})]
    assert concluded(rules(**SILENT), asleep, until=2 * HOUR) == []
    assert concluded(rules(**SILENT), asleep[:1], until=2 * HOUR)


def test_what_a_node_said_before_it_was_powered_down_comes_late() -> None:
    engine = Engine(rules(**SILENT))
    for one in (_beats("n1", 0)[0], event("slurm.node_state", 60, body={"state": "powered_down"})):
        engine.take(one)
    engine.take(_beats("n1", 30)[0], START + 120)
    assert waited(engine, 2 * HOUR) == []


def test_the_services_own_absence_is_nobodys_silence() -> None:
    engine = Engine(rules(**SILENT))
    for node in ("n1", "n2"):
        assert engine.take(_beats(node, 0)[0]) == []
    assert engine.take(_beats("n1", 9 * HOUR)[0]) == []
    assert waited(engine, 9 * HOUR + 10 * MINUTE) == []
    assert [one.node for one in waited(engine, 9 * HOUR + 29.5 * MINUTE)] == ["n2"]


def test_heard_again() -> None:
    engine = Engine(rules(**SILENT))
    engine.take(_beats("n1", 0)[0])
    (out,) = waited(engine, HOUR)
    (closed,) = engine.take(_beats("n1", 2 * HOUR)[0])
    assert (out.case, out.state, closed.case, closed.state) == (closed.case, "open", out.case, "closed")


def test_a_condition_that_cannot_be_computed_is_counted_and_holds_not() -> None:
    engine = Engine(rules(where="'flaps > 3'", when='"count >= 1"'))
    assert engine.take(event("link.flap", 0, body={"flaps": "many"})) == []
    assert engine.take(event("link.flap", 0, body={})) == []
    assert engine.troubles == {"few": 2}
    assert engine.take(event("link.flap", 100, body={"flaps": 4}))


def test_a_gpu_without_a_uuid_is_known_by_its_address() -> None:
    rule = of_catalogue("fatal-xids")

    def xids(*pci: str) -> list[Event]:
        return [event("gpu.xid", i * HOUR, severity=FATAL, body={"xid": 79, "pci": one}) for i, one in enumerate(pci)]

    (out,) = concluded([rule], xids(*["0000:3b:00.0"] * 5))
    assert out.subject == "pci:0000:3b:00.0"
    assert concluded([rule], xids(*["0000:3b:00.0"] * 4, "0000:af:00.0")) == []
    assert concluded([rule], xids(*[""] * 5)) == []


def test_corrected_errors_are_neither_a_case_nor_a_trouble() -> None:
    engine = Engine([of_catalogue("memory-uncorrected")])
    assert [one for i in range(9) for one in engine.take(event("memory.ecc", i * DAY, body={"corrected": 3}))] == []
    assert engine.troubles == {}


def test_age_last_and_since_repair() -> None:
    text = rules(when='"count >= 2 && last <= 0.5 && age > 24.0"', window='"7d"')
    assert concluded(text, _flaps(0, 1000)) == []
    (out,) = concluded(text, [event("node.heartbeat", -2 * DAY), *_flaps(0, 1000)])
    assert out.values == {"age": 48.278, "count": 2, "last": 0.278}
    text = rules(when='"since_repair >= 2"', window='"30d"', recovery='["ack"]')
    assert concluded(text, [*_flaps(0), event("site.repair", 100), *_flaps(300)]) == []
    assert concluded(text, [*_flaps(0), event("site.repair", 100), *_flaps(300, 600)])


def test_a_kind_that_nobody_knows_is_nothing() -> None:
    assert concluded(rules(), [again(event("link.flap", i * 300), kind="link.other") for i in range(5)]) == []


def test_a_users_events_push_out_nobody_elses() -> None:
    text = rules(events='["step.outcome"]', window='"7d"', when='"users >= 3"', then='"revet"')
    others = [event("step.outcome", i * 60, uid=i, job=i + 1) for i in (1, 2)]
    flood = [event("step.outcome", 1000 + i * 61, uid=9, job=100 + i) for i in range(3000)]
    (out,) = concluded(text, [*others, *flood])
    assert {one.key for one in others} < set(out.records)
    assert len(out.records) <= 12


def test_memory_is_bounded_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piolet.central.rules.engine._GROUPS_MAX", 500)
    engine = Engine(rules(CATALOGUE))

    def flood(first: int, many: int) -> None:
        for i in range(first, first + many):
            for kind, source in (("vet.verdict", USER), ("slurm.node_state", SITE), ("fs.blocked", "kernel")):
                engine.take(event(kind, i * 70, source=source, uid=i, job=1 + i, subject=f"gpu:{i}",
                                  body={"state": "fail" if source == USER else "drain"}))  # fmt: skip

    tracemalloc.start()
    flood(0, 3_000)
    before = tracemalloc.get_traced_memory()[0]
    flood(3_000, 9_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1 << 18


def test_replayed_it_is_the_same_byte_for_byte() -> None:
    events, _ = fleet.simulate(7, fleet.Fleet(nodes=300, days=20, rate=2e-3, largest=64))
    lines = []
    for _ in range(2):
        engine = Engine(rules(CATALOGUE, missing='"20h"'))
        lines.append(b"".join(encode(one) for received, each in events for one in engine.take(each, received)))
    assert lines[0] == lines[1]
    assert lines[0].count(b"\n") > 50
    assert b"".join(encode(decode(line)) for line in lines[0].splitlines()) == lines[0]


def test_a_daemon_that_starts_again_is_no_boot() -> None:
    """It is a sign of life, recovers nothing, and does not count; a start of another boot does."""
    lost = of_catalogue("gpu-lost")
    often = of_catalogue("boots-often")
    first, second = "1" * 32, "2" * 32
    engine = Engine([lost, often])
    engine.take(event("node.start", 0, boot=first, body={"booted": 1.0}))
    (opened,) = engine.take(event("gpu.lost", 100, subject="gpu:GPU-1"))
    for minute in range(30):
        assert engine.take(event("node.start", 200 + 3600 * minute, boot=first, body={"booted": 1.0})) == []
    (closed,) = engine.take(event("node.start", 30 * 3600, boot=second, body={"booted": 2.0}))
    assert (closed.case, closed.state) == (opened.case, CLOSED)


def test_a_fault_that_is_told_behind_a_start_of_the_daemon_counts() -> None:
    engine = Engine([of_catalogue("gpu-lost")])
    engine.take(event("node.start", 0, boot="1" * 32, body={"booted": 1.0}))
    engine.take(event("node.start", 100, boot="1" * 32, body={"booted": 1.0}))
    (opened,) = engine.take(event("gpu.lost", 99, subject="gpu:GPU-1"))
    assert opened.state == OPEN
