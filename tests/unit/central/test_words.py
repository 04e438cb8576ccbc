"""What people read: a case explained, and what a user is told of nodes."""

from __future__ import annotations

import random

import pytest
from piolet.central.rules.engine import Engine
from piolet.central.rules.explain import case
from piolet.central.rules.users import Failed, Node, about, line, spares, spares_line
from piolet.central.rules.words import span

from tests.unit.central.making import CATALOGUE, MINUTE, event, rules


def test_a_case_is_explained() -> None:
    engine = Engine(rules())
    events = [event("link.flap", i * 5 * MINUTE, subject="port:mlx5_0/1", body={"flaps": 2}) for i in range(3)]
    events.append(event("site.repair", 20 * MINUTE))
    found = [one for each in events for one in engine.take(each)]
    lines = case(found, events[:2], engine.rules)
    assert lines[0] == f"case {found[0].case}: n1: flaps: 3 times in 1 hour"
    assert lines[1:7] == [
        "  opened  2027-01-15T08:10:00Z",
        "  closed  2027-01-15T08:20:00Z: flaps: it was repaired",
        "  would   people would be asked to look at the node; in shadow nothing is done",
        "  rule    few: count >= 3",
        "  source  a test (2026-11-29)",
        "  seen    count = 3",
    ]
    assert lines[7:9] == [
        "  records 3",
        "    2027-01-15T08:00:00Z  link.flap  kernel  port:mlx5_0/1; flaps 2",
    ]
    assert lines[10].endswith("not here, or not for you to see")
    assert "few, which has been changed since: count >= 3" in case(found, [], rules(window='"2h"'))[4]
    assert case(found, [], ())[4] == "  rule    few, which is not among today's rules"


def test_what_a_record_says_is_one_line_whatever_it_says() -> None:
    engine = Engine(rules(CATALOGUE))
    events = [
        event("vet.verdict", i * 3600, uid=1, job=1 + i, body={"state": "fail", "reason": "\x1b[2J\n" * 99})
        for i in (0, 1)
    ]
    found = [one for each in events for one in engine.take(each)]
    lines = case(found, events, engine.rules)
    assert all(one.isprintable() and len(one) < 250 for one in lines)
    assert "user" in lines[-1]


def test_seconds_as_people_say_them() -> None:
    assert [span(one) for one in (1, 90, 60, 7200, 86400, 7 * 86400, 1.5 * 86400)] == [
        "1 second", "1.5 minutes", "1 minute", "2 hours", "24 hours", "7 days", "36 hours",
    ]  # fmt: skip


def known(*nodes: Node) -> dict[str, Node]:
    return {node.name: node for node in nodes}


BAD = Node("node3", Failed(4, 3))


@pytest.mark.parametrize(
    ("failed_on", "nodes", "others", "said"),
    [
        (["node3"], known(BAD), 0, "node3 failed 4 steps of 3 users this week: ask for --exclude=node3"),
        (["node3"], known(BAD), 6, "it failed alike on 6 other nodes: probably the program"),
        ([f"node{i}" for i in range(7)], known(BAD), 0, "it failed alike on 7 nodes: probably the program"),
        ([f"node{i}" for i in range(7)], known(BAD), 6, "it failed alike on 7 nodes: probably the program"),
        (["node3", "node4"], known(BAD), 0, "node3 failed 4 steps of 3 users this week: ask for --exclude=node3"),
        (["node3"], {}, 0, None),
        (["node3"], known(Node("node3", Failed(9, 1))), 0, None),
        ([], known(BAD), 9, None),
        (["node3", "node5", "node6"], known(Node("node3", cases=["node3: a GPU is not there any more"])), 0,
         "node3: a GPU is not there any more: ask for --exclude=node3"),
        (["a", "b", "c"], known(*(Node(one, cases=[f"{one}: flaps"]) for one in "abc")), 0,
         "it failed alike on 3 nodes: probably the program"),
    ],
)  # fmt: skip
def test_the_line_at_the_end(failed_on: list[str], nodes: dict[str, Node], others: int, said: str | None) -> None:
    assert line(failed_on, nodes, others) == said


def test_of_few_users_nothing_is_told_where_it_is_hidden() -> None:
    two = known(Node("node3", Failed(4, 2)))
    assert line(["node3"], two) == "node3 failed 4 steps of 2 users this week: ask for --exclude=node3"
    assert line(["node3"], two, private=True) is None
    assert line(["node3"], known(BAD), private=True)
    assert about(Node("node3", Failed(4, 2), heard=9), private=True) == ["node3: nothing is known against it"]


def test_what_is_known_of_a_node() -> None:
    node = Node("node3", Failed(4, 3), {"XID 79": 1, "a port went down": 5}, ["node3: flaps: 3 times"], 5 * 86400.0)
    assert about(node) == [
        "node3",
        "  nothing was heard of it for 5 days",
        "  open: node3: flaps: 3 times",
        "  XID 79",
        "  a port went down (5 times)",
        "  4 steps of 3 users died here this week",
    ]
    assert about(Node("node4", heard=10)) == ["node4: nothing is known against it"]
    assert about(Node("node5"))[1] == "  it has never said anything to the central service"


def test_spares_are_enough_in_19_of_20_jobs() -> None:
    draw = random.Random(1)
    for nodes, hours, rate in ((512, 100, 2e-5), (64, 24, 1e-4), (1000, 200, 5e-5)):
        most = lacked = 0
        for _ in range(400):
            seen = sum(draw.random() < rate * 100 for _ in range(20_000))  # 2,000,000 node-hours of history
            advised = spares(nodes, hours, seen, 2_000_000)
            assert advised is not None
            needed = sum(draw.random() < 1 - (1 - rate) ** hours for _ in range(nodes))
            lacked += needed > advised
            most = max(most, advised)
        assert lacked <= 0.05 * 400 + 2 * (400 * 0.05 * 0.95) ** 0.5
        assert most < 3 + 3 * nodes * hours * rate


def test_no_history_no_advice() -> None:
    assert spares(512, 100, 0, 9_999) is None
    assert spares_line(512, 100, 0, 9_999) is None
    said = "no spare node for 1 node over 1 h: 0 failures in 1,000,000,000 node-hours here"
    assert spares_line(1, 1, 0, 10**9) == said
    assert (
        spares_line(512, 100, 40, 2e6)
        == "3 spare nodes for 512 nodes over 100 h: 40 failures in 2,000,000 node-hours here"
    )
    little, much = spares(512, 100, 1, 50_000), spares(512, 100, 40, 2_000_000)
    assert little is not None and much is not None and little > much
    assert spares(4, 1e6, 10, 10_000) == 4
    many = spares(10_000, 720, 1000, 10_000_000)  # some 720 failures, and no more than 1.645 deviations above
    assert many is not None
    assert 750 < many < 840
    assert spares(10_000, 1e7, 1000, 10_000_000) == 10_000
