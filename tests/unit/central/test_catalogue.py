"""Each rule of the catalogue: what fires it, what just does not, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from piolet.central.conclusions import ACTIONS, REVET
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import parse
from piolet.events.envelope import FATAL, Event

from tests.unit.central.making import CATALOGUE, DAY, HOUR, MINUTE, START, concluded, event, of_catalogue, waited


@dataclass
class Case:
    """What a rule is tried with.

    make   the number of an event -> the event
    least  so many fire it
    so     an event that just does not, in the place of the last one
    then   what ends it
    back   seconds after each event but the last until Slurm has the node in service again; None: it was all the time
    """

    make: Callable[[int], Event]
    least: int
    so: Callable[[], Event]
    then: Event | float
    back: float | None = None


def _repeated(kind: str, every: float, **rest: Any) -> Callable[[int], Event]:
    return lambda number: event(kind, number * every, **rest)


def _of_users(kind: str, every: float, **rest: Any) -> Callable[[int], Event]:
    return lambda number: event(kind, number * every, uid=1000 + number, job=10 + number, **rest)


GPU = "gpu:GPU-1"
XID: dict[str, Any] = {"subject": GPU, "severity": FATAL, "body": {"xid": 79}}
FLAP: dict[str, Any] = {"subject": "port:mlx5_0/1", "body": {"state": "down", "flaps": 1}}
DOWN: dict[str, Any] = {"body": {"state": "down", "reason": "Not responding", "by": "slurm"}}
DRAIN: dict[str, Any] = {"body": {"state": "drain", "reason": "x", "by": "op"}}
DIED: dict[str, Any] = {"body": {"status": None, "signal": 6, "why": "signal"}}
REPAIRED, GOOD = event("site.repair", 8 * DAY), event("site.revet", 8 * DAY, body={"outcome": "good"})

CASES = {
    "fatal-xids": Case(_repeated("gpu.xid", HOUR, **XID), 5, lambda: event("gpu.xid", 25 * HOUR, **XID), REPAIRED),
    "xid-31-twice": Case(
        _of_users("gpu.xid", HOUR, subject=GPU, body={"xid": 31}), 2,
        lambda: event("gpu.xid", HOUR, subject=GPU, uid=1000, body={"xid": 31}), GOOD,
    ),
    "xid-13-one-tpc": Case(
        _of_users("gpu.xid", HOUR, subject=GPU, body={"xid": 13, "gpc": 1, "tpc": 2}), 2,
        lambda: event("gpu.xid", HOUR, subject=GPU, uid=7, body={"xid": 13, "gpc": 1, "tpc": 3}), GOOD,
    ),
    "gpu-lost": Case(
        _repeated("gpu.lost", 0, subject=GPU), 1, lambda: event("gpu.lost", 0), event("node.start", HOUR)
    ),
    "gpu-lost-again": Case(
        _repeated("gpu.lost", DAY, subject=GPU), 2, lambda: event("gpu.lost", 5 * HOUR, subject=GPU), REPAIRED
    ),
    "sxid-fatal": Case(
        _repeated("nvswitch.sxid", 0, severity=FATAL), 1, lambda: event("nvswitch.sxid", 0, severity="warn"), GOOD
    ),
    "link-flaps": Case(
        _repeated("link.flap", 29 * MINUTE, **FLAP), 3, lambda: event("link.flap", 61 * MINUTE, **FLAP), 2 * DAY
    ),
    "link-degraded": Case(
        _repeated("link.flap", 5 * HOUR, **FLAP), 5, lambda: event("link.flap", 24.5 * HOUR, **FLAP), REPAIRED
    ),
    "memory-uncorrected": Case(
        _repeated("memory.ecc", 2 * HOUR, severity=FATAL, body={"uncorrected": 1}), 2,
        lambda: event("memory.ecc", 2 * HOUR, severity="info", body={"corrected": 900}), REPAIRED,
    ),
    "pcie-errors": Case(
        _repeated("pcie.aer", HOUR, severity=FATAL), 3, lambda: event("pcie.aer", 2 * HOUR, severity="warn"), REPAIRED
    ),
    "lemon": Case(_repeated("gpu.xid", 100 * DAY, **XID), 4, lambda: event("gpu.xid", 213 * DAY, **XID),
                  event("site.revet", 330 * DAY, body={"outcome": "good"})),
    "failed-thrice": Case(_repeated("gpu.xid", 59 * DAY, **XID), 3, lambda: event("gpu.xid", 241 * DAY, **XID),
                          event("site.revet", 260 * DAY, body={"outcome": "good"})),
    "failed-twice": Case(
        _repeated("gpu.lost", 29 * DAY), 2, lambda: event("gpu.lost", 31 * DAY),
        event("site.revet", 40 * DAY, body={"outcome": "good"}),
    ),
    "repairs-often": Case(
        _repeated("site.repair", DAY), 5, lambda: event("site.repair", 7.5 * DAY), event("site.note", 8 * DAY)
    ),
    "repairs-in-all": Case(
        _repeated("site.repair", 300 * DAY), 3, lambda: event("site.repair", 300 * DAY + HOUR),
        event("site.note", 900 * DAY),
    ),
    "down-often": Case(
        _repeated("slurm.node_state", 2.1 * DAY, **DOWN), 3, lambda: event("slurm.node_state", 4.1 * DAY, **DOWN),
        event("site.repair", 40 * DAY), back=HOUR,
    ),
    "drain-flapping": Case(
        _repeated("slurm.node_state", 2 * DAY, **DRAIN), 3, lambda: event("slurm.node_state", 7.1 * DAY, **DRAIN),
        REPAIRED,
    ),
    "boots-often": Case(_repeated("node.start", HOUR), 4, lambda: event("node.start", 24.1 * HOUR), REPAIRED),
    "silent": Case(
        _repeated("node.heartbeat", 0), 1, lambda: event("node.heartbeat", 29 * MINUTE),
        event("node.heartbeat", 40 * MINUTE),
    ),
    "records-lost": Case(
        _repeated("spool.lost", 0, body={"records": 7}), 1, lambda: event("spool.dropped", 0), 8 * DAY
    ),
    "vet-failed-twice": Case(
        _of_users("vet.verdict", DAY, body={"state": "fail"}), 2,
        lambda: event("vet.verdict", DAY, job=10, body={"state": "fail"}), GOOD,
    ),
    "steps-of-three-users": Case(
        _of_users("step.outcome", DAY, **DIED), 3, lambda: event("step.outcome", 2 * DAY, uid=1001, job=99, **DIED),
        GOOD,
    ),
    "jobs-of-three-users": Case(
        _of_users("slurm.job_end", DAY, source="user", body={"state": "FAILED", "nodes": "n1"}),
        3,
        lambda: event("slurm.job_end", 2 * DAY, source="user", uid=5, body={"state": "FAILED", "nodes": "n[1-2]"}),
        GOOD,
    ),
    "file-system-alone": Case(
        _repeated("fs.blocked", HOUR, subject="fs:/scratch"), 3,
        lambda: event("fs.blocked", 2 * HOUR, subject="fs:/home"), event("node.start", DAY),
    ),
    "processes-wait": Case(
        _repeated("fs.blocked", HOUR, body={"processes": 5, "accounts": 2}), 3,
        lambda: event("fs.blocked", 2 * HOUR, body={"processes": 5, "accounts": 1}), event("node.start", DAY),
    ),
    "vet-cannot-run": Case(
        _of_users("vet.refused", HOUR), 2, lambda: event("vet.refused", HOUR, uid=1000), GOOD
    ),
    "revet-failed": Case(
        _repeated("site.revet", 0, body={"outcome": "bad"}), 1,
        lambda: event("site.revet", 0, body={"outcome": "good"}), GOOD,
    ),
}  # fmt: skip


def test_every_rule_of_the_catalogue_is_tried() -> None:
    read = parse("catalogue.toml", CATALOGUE)
    assert {rule.name for rule in read} == set(CASES)
    for rule in read:
        assert rule.source, rule.name
        assert rule.then in ACTIONS


def _events(case: Case, last: Iterable[Event] = ()) -> list[Event]:
    first = [case.make(number) for number in range(case.least - 1)]
    resumed = [] if case.back is None else [
        event("slurm.node_state", one.time - START + case.back, body={"state": "resume"}) for one in first
    ]  # fmt: skip
    return [*sorted((*first, *resumed), key=lambda one: one.time), *last]


def _until(name: str, events: list[Event]) -> float:
    """Return when all that is there is settled, and a silence is long enough, but no quiet time has passed."""
    rule = of_catalogue(name)
    return max((one.time for one in events), default=0.0) - 1_800_000_000.0 + rule.settle + rule.missing + 130


@pytest.mark.parametrize("name", CASES)
def test_it_fires(name: str) -> None:
    case = CASES[name]
    events = _events(case, [case.make(case.least - 1)])
    out = concluded([of_catalogue(name)], events, until=_until(name, events))
    assert [(one.rule, one.state, one.node) for one in out] == [(name, "open", "n1")]
    assert set(out[0].records) <= {one.key for one in events}
    assert out[0].sentence.startswith("n1")


@pytest.mark.parametrize("name", CASES)
def test_it_just_does_not(name: str) -> None:
    case = CASES[name]
    events = _events(case, [case.so()])
    rule = of_catalogue(name)
    until = _until(name, events) - (rule.missing and rule.missing + rule.settle - MINUTE)
    assert concluded([rule], events, until=until) == []


@pytest.mark.parametrize("name", CASES)
def test_it_recovers(name: str) -> None:
    case, engine = CASES[name], Engine([of_catalogue(name)])
    events = _events(case, [case.make(case.least - 1)])
    out = [one for event in events for one in engine.take(event)]
    out += waited(engine, _until(name, events))
    assert [one.state for one in out] == ["open"]
    if isinstance(case.then, float):
        closed = waited(engine, case.then + events[-1].time - 1_800_000_000.0)
    else:
        end = case.then
        body = {"case": out[0].case} if end.kind == "site.note" else end.body
        closed = engine.take(event(end.kind, end.time - 1_800_000_000.0, body=body))
    assert [(one.state, one.case) for one in closed] == [("closed", out[0].case)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.least > 1])
def test_a_copy_of_an_event_is_no_second_one(name: str) -> None:
    case = CASES[name]
    first = _events(case)
    copies = [copy for one in first for copy in [one] * 4]
    assert concluded([of_catalogue(name)], copies, until=_until(name, copies)) == []


def test_a_component_that_failed_on_one_node_is_no_job_of_one_node() -> None:
    def job(number: int, **said: str) -> Event:
        body = {"state": "FAILED", "nodes": "n1", **said}
        return event("slurm.job_end", number * HOUR, source="user", job=10 + number, uid=number, body=body)

    rules = [of_catalogue("jobs-of-three-users")]
    assert concluded(rules, [job(number, array=f"{10 + number}+0") for number in range(1, 9)], until=DAY) == []
    assert concluded(rules, [job(number, array=f"9_{number}") for number in range(1, 9)], until=DAY)


def test_a_node_that_was_taken_away_is_acknowledged_and_stays_so() -> None:
    engine = Engine([of_catalogue("silent")])
    engine.take(event("node.heartbeat", 0))
    for minute in range(1, 60):
        engine.take(event("node.heartbeat", minute * MINUTE, "n2"))
    (case,) = engine.open
    (closed,) = engine.take(event("site.note", HOUR, body={"case": case, "text": "sold"}))
    assert (closed.state, closed.case) == ("closed", case)
    for minute in range(61, 200):
        assert engine.take(event("node.heartbeat", minute * MINUTE, "n2")) == []
    assert engine.open == set()


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize("name", ["link-flaps", "link-degraded"])
@pytest.mark.parametrize(("first", "apart"), [(49, 25), (5, 59), (31, 59), (61, 59), (100, 59)])
def test_a_line_card_is_no_nodes_fault(name: str, many: int, first: float, apart: float) -> None:
    """The ports of two nodes go down at once, again and again; each node looks once a minute, and tells when."""
    every = 15 * MINUTE if name == "link-flaps" else 4 * HOUR
    flaps = [event("link.flap", first + number * every + apart * node, f"n{node}", **FLAP)
             for number in range(9) for node in range(many)]  # fmt: skip
    out = concluded([of_catalogue(name)], flaps, until=2 * DAY)
    assert {one.node for one in out} == ({"n0"} if many == 1 else set())


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_program_that_takes_nodes_down_is_no_nodes_fault(nodes: int) -> None:
    """Its user tries it six times within a week, on one node or on two, which go down within a quarter of an hour."""
    rule, events = of_catalogue("down-often"), []
    for day in (0.0, 0.5, 1.7, 2.5, 4.2, 5.0):
        for node in range(nodes):
            at = day * DAY + 800 * node
            events += [event("slurm.node_state", at, f"n{node}", **DOWN),
                       event("slurm.node_state", at + HOUR, f"n{node}", body={"state": "resume"})]  # fmt: skip
    assert concluded([rule], sorted(events, key=lambda one: one.time), until=8 * DAY) == []


def test_what_users_bring_about_asks_for_a_re_vet_only() -> None:
    asking = {rule.name for rule in parse("catalogue.toml", CATALOGUE) if rule.then == REVET}
    assert asking == {
        "xid-31-twice", "xid-13-one-tpc", "vet-failed-twice", "steps-of-three-users", "jobs-of-three-users",
        "file-system-alone", "processes-wait", "vet-cannot-run", "failed-twice", "boots-often",
    }  # fmt: skip
