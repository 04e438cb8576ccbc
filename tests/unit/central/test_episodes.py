"""Episodes: failures between which a node has not worked for long are one, whatever was done in between."""

from __future__ import annotations

import random
from typing import Any

import pytest
from piolet.base.errors import RuleError
from piolet.central.conclusions import Conclusion, encode
from piolet.central.rules.engine import Engine
from piolet.central.rules.inservice import CHANGES_MAX, OUT_MOST, InService
from piolet.central.rules.replay import replay
from piolet.events.envelope import Event

from tests.simulators import fleet, fleet3
from tests.unit.central.making import CATALOGUE, DAY, HOUR, MINUTE, START, concluded, event, rules

TRAINS: dict[str, str] = {
    "window": '"100d"', "burst": '"1h"', "apart": '"7d"', "when": '"episodes >= 3"', "recovery": '["revet"]',
}  # fmt: skip


def _flaps(*days: float, **rest: Any) -> list[Event]:
    return [event("link.flap", one * DAY, **rest) for one in days]


def _state(state: str, day: float) -> Event:
    return event("slurm.node_state", day * DAY, body={"state": state, "reason": "", "by": "op"})


def _sentences(events: list[Event], **changes: str) -> list[str]:
    ordered = sorted(events, key=lambda one: one.time)
    return [one.sentence for one in concluded(rules(**{**TRAINS, **changes}), ordered)]


def test_failures_with_work_between_them_are_episodes() -> None:
    assert _sentences(_flaps(0, 7, 14)) == ["n1: flaps: 3 times in 3 episodes in 100 days"]
    assert _sentences(_flaps(0, 7, 13.9)) == []


def test_a_train_is_one_episode_however_long() -> None:
    assert _sentences(_flaps(*range(0, 90, 6))) == []
    assert _sentences(_flaps(0, 1, 2, 20, 21, 40)) == ["n1: flaps: 6 times in 3 episodes in 100 days"]


def test_a_repair_between_two_failures_makes_no_second_episode() -> None:
    repairs = [event("site.repair", one * DAY) for one in (0.5, 1.5, 2.5)]
    assert _sentences([*_flaps(0, 1, 2, 3), *repairs]) == []


def test_time_out_of_service_is_no_work() -> None:
    out = [_state("drained*", 0.1), _state("resume", 20), _state("down", 21.1), _state("resume", 50)]
    assert _sentences([*_flaps(0, 21, 51), *out]) == []
    out = [_state("drained*", 0.1), _state("resume", 20), _state("down", 27.3), _state("resume", 50)]
    assert _sentences([*_flaps(0, 27.2, 57.2), *out])  # 7.3 days of work, and 7.3
    assert _sentences([*_flaps(0, 26.8, 57.2), *out]) == []  # 6.9, and 7.7


def test_a_resume_that_was_lost_does_not_hide_failures_for_ever() -> None:
    lost = [_state("down", 0.1), _state("down", 160.2)]
    assert _sentences([*_flaps(0, 80, 160), *lost], window='"300d"')
    assert _sentences([*_flaps(0, 30, 59), *lost[:1]]) == []


def test_states_that_come_late_and_in_disorder_are_the_same() -> None:
    told = [("drain", 1), ("resume", 20), ("fail", 23), ("idle", 40)]
    for seed in range(10):
        service = InService()
        for state, day in random.Random(seed).sample(told, 4):
            service.told(START + day * DAY, state)
        assert service.worked(START, START + 50 * DAY) == 14 * DAY
        assert service.worked(START + 5 * DAY, START + 21 * DAY) == DAY


def test_what_is_kept_of_a_node_is_bounded() -> None:
    service = InService()
    for day in range(10_000):
        service.told(START + day * DAY, "drain" if day % 2 else "resume")
    assert service.changes is not None
    assert len(service.changes) == CHANGES_MAX
    end = START + 10_000 * DAY
    assert service.worked(end - 10 * DAY, end) == 5 * DAY
    assert InService().worked(0.0, 7.0) == 7.0
    assert OUT_MOST > 30 * DAY


def test_a_long_train_pushes_out_no_older_episode() -> None:
    """Twelve failures of one cause, and the two episodes before it are still counted."""
    train = [20 + one / 4 for one in range(12)]
    assert _sentences(_flaps(0, 10, *train)) == ["n1: flaps: 3 times in 3 episodes in 100 days"]
    late = [*_flaps(*train), *_flaps(0, 10)]
    engine = Engine(rules(**TRAINS))
    (opened,) = [one for each in late for one in engine.take(each, START + 30 * DAY)]
    assert opened.values == {"episodes": 3}


def test_a_late_failure_that_joins_two_episodes_takes_nothing_back() -> None:
    engine = Engine(rules(**TRAINS))
    (opened,) = [one for each in _flaps(0, 7, 14) for one in engine.take(each)]
    assert engine.take(_flaps(10)[0], START + 15 * DAY) == []
    assert opened.case in engine.open


def test_what_befell_many_nodes_hides_nothing_of_another_kind() -> None:
    """Links flap on six nodes, and one of these loses a GPU in the same minutes: that is its own."""
    text = rules(events='["link.flap", "gpu.lost"]', when='"count >= 1"', alone="4", settle='"1min"', burst='"1h"')
    storm = [event("link.flap", number, f"n{number}") for number in range(6)]
    out = concluded(text, [*storm, event("gpu.lost", 10, "n3", subject="gpu:GPU-1")], until=HOUR)
    assert [(one.node, len(one.records)) for one in out] == [("n3", 1)]


@pytest.mark.parametrize(("apart", "named"), [(0, 0), (9 * MINUTE, 0), (31 * MINUTE, 2)])
def test_what_two_nodes_have_within_minutes_is_neithers(apart: float, named: int) -> None:
    """The burst is half a day, in which two nodes may well fail by chance; not within `together`."""
    text = rules(
        when='"count >= 1"', alone="4", together='"20min"', settle='"40min"', burst='"12h"', recovery='["ack"]'
    )
    flaps = [event("link.flap", 5 * MINUTE, "n1"), event("link.flap", 5 * MINUTE + apart, "n2")]
    assert len(concluded(text, flaps, until=3 * HOUR)) == named
    other = [flaps[0], event("gpu.lost", 6 * MINUTE, "n2"), event("link.flap", 7 * MINUTE, "n1")]
    assert [one.node for one in concluded(text, other, until=3 * HOUR)] == ["n1"], "of another kind, or its own"


def test_a_repair_that_somebody_told_counts_for_a_lemon() -> None:
    """Failures that say nothing are mended, too: four repairs in a year, and no line of the kernel."""
    repairs = [event("site.repair", day * DAY, body={"text": "riser", "by": "bob"}) for day in (0, 90, 180, 270)]
    assert "lemon" in {one.rule for one in concluded(rules(CATALOGUE), repairs, until=300 * DAY)}
    assert "lemon" not in {one.rule for one in concluded(rules(CATALOGUE), repairs[:3], until=300 * DAY)}
    everywhere = [
        event("site.repair", day * DAY + 31 * MINUTE * node, f"n{node}")
        for day in (0, 90, 180, 270)
        for node in range(9)
    ]
    assert "lemon" not in {one.rule for one in concluded(rules(CATALOGUE), everywhere, until=300 * DAY)}, "a campaign"


def test_one_failure_with_many_signs_is_one_episode() -> None:
    """An XID, the GPU gone and Slurm's word within minutes: three bursts, and no lemon."""
    signs: list[Event] = []
    for day in (0.0, 3.0):
        at = day * DAY
        signs += [
            event("gpu.xid", at, subject="gpu:GPU-1", severity="fatal", body={"xid": 79}),
            event("pcie.aer", at + 1, severity="fatal"),
            event("gpu.lost", at + 2, subject="gpu:GPU-1"),
            event("slurm.node_state", at + 5 * MINUTE, body={"state": "down", "reason": "Not responding"}),
            event("slurm.node_state", at + HOUR, body={"state": "resume"}),
        ]
    out = concluded(rules(CATALOGUE), signs, until=4 * DAY)
    assert "lemon" not in {one.rule for one in out}
    assert "gpu-lost" in {one.rule for one in out}


def test_a_train_of_a_good_node_is_no_lemon_and_a_node_that_never_works_is() -> None:
    """Ten failures in a month, with repairs that mend nothing; and 20 without three good weeks in between."""

    def failed(many: int) -> list[Event]:
        made = []
        for number in range(many):
            made.append(event("gpu.xid", number * 3 * DAY, subject="gpu:GPU-1", severity="fatal", body={"xid": 79}))
            made.append(event("site.repair", number * 3 * DAY + HOUR))
        return made

    assert "lemon" not in {one.rule for one in concluded(rules(CATALOGUE), failed(10), until=31 * DAY)}
    assert "lemon" not in {one.rule for one in concluded(rules(CATALOGUE), failed(19), until=70 * DAY)}
    assert "lemon" in {one.rule for one in concluded(rules(CATALOGUE), failed(20), until=70 * DAY)}


@pytest.mark.parametrize(
    ("days", "named"),
    [
        ((0, 22, 44), False), ((0, 22, 44, 66), True), ((0, 20, 40, 60), False),
        ((0, 330, 660, 990), True), ((0, 340, 680, 1020), False),
        ((0, 300, 600, 900, 1200), True), ((0, 360, 720, 1080, 1461), False),
    ],
)  # fmt: skip
def test_how_many_episodes_are_too_many_goes_by_the_hours_of_work(days: tuple[int, ...], named: bool) -> None:
    """Four in a thousand days, three weeks of work apart, and five in four years."""
    failures = [event("gpu.xid", day * DAY, subject="gpu:GPU-1", severity="fatal", body={"xid": 79}) for day in days]
    out = concluded(rules(CATALOGUE), failures, until=(days[-1] + 1) * DAY)
    assert ("lemon" in {one.rule for one in out}) is named


def test_hours_of_work_are_those_in_service_since_the_last_case() -> None:
    flaps = {"when": '"worked > 100.0"', "window": '"10d"', "recovery": '["ack"]'}
    engine = Engine(rules(**flaps))
    away = [_state("drain", 1), _state("resume", 3)]
    each = sorted([*_flaps(0, 6.1, 6.3, 30), *away], key=lambda one: one.time)
    first, last = _opened(engine, each)
    assert first.values["worked"] == 103.2  # 6.3 days but two
    assert last.values["worked"] == 240.0  # the window, and not all of its age


def _opened(engine: Engine, events: list[Event]) -> list[Conclusion]:
    """Take events, and have each case acknowledged at once."""
    found = []
    for one in events:
        for case in engine.take(one):
            found.append(case)
            engine.take(event("site.note", one.time - START + 1, body={"case": case.case}))
    return found


@pytest.mark.parametrize("changes", [{"apart": '"7d"'}, {"when": '"episodes >= 3"'}])
def test_episodes_and_apart_go_together(changes: dict[str, str]) -> None:
    with pytest.raises(RuleError, match="episodes and what keeps them apart go together") as raised:
        rules(**changes)
    assert raised.value.hint is not None
    assert 'apart = "14d"' in raised.value.hint


def test_a_fleet_of_trains_replayed_is_what_was_live_byte_for_byte() -> None:
    events, _ = fleet3.simulate(11, fleet.Fleet(nodes=200, days=60, rate=2e-3, largest=32))
    live = Engine(rules(CATALOGUE, missing='"20h"'))
    lines = b"".join(encode(one) for received, each in events for one in live.take(each, received))
    done = replay(rules(CATALOGUE, missing='"20h"'), [(each, received) for received, each in events])
    assert b"".join(map(encode, done.conclusions)) == lines
    assert b" episodes in " in lines
