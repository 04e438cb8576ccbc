"""What users bring about asks for a re-vet, and nothing else, whatever they say, as how many accounts they say it."""

from __future__ import annotations

import pytest
from piolet.base.errors import RuleError
from piolet.central.conclusions import ACTIONS, REVET
from piolet.central.rules import trust
from piolet.central.rules.engine import Engine
from piolet.central.rules.revets import BY_USERS, PER_USER
from piolet.events.envelope import FATAL, KERNEL, ROOT, USER, Event
from piolet.events.kinds import KINDS

from tests.unit.central.making import CATALOGUE, DAY, MINUTE, event, rules, waited

NODES = 40
USERS_ONLY = [kind.name for kind in KINDS.values() if kind.sources == (USER,)]


def forged(accounts: int, records: int, *, nodes: int = NODES) -> list[Event]:
    """Return what users can have recorded: of each kind that is theirs, of each node, as bad as it gets."""
    made = []
    bad = {
        "vet.verdict": {"state": "fail", "outcome": "bad", "origin": "site", "eval": "gpu_health", "judge": "limit"},
        "vet.decision": {"excluded": ["n1"], "state": {"n1": "bad"}},
        "step.outcome": {"status": None, "signal": 7, "why": "signal", "tasks": 8},
        "slurm.job_end": {"state": "NODE_FAIL"},
        "gpu.xid": {"xid": 31, "gpc": 1, "tpc": 1}, "kernel.oom": {"scope": "node"}, "fs.blocked": {"processes": 99},
        "fs.evicted": {}, "vet.refused": {"reason": "x"}, "step.refused": {"reason": "x"}, "spool.dropped": {},
        "slurm.node_state": {"state": "drain", "reason": "Kill task failed"}, "spool.lost": {"records": 9},
    }  # fmt: skip
    kinds = list(bad)
    for number in range(records):
        kind = kinds[number % len(kinds)]
        source = USER if USER in KINDS[kind].sources else KINDS[kind].sources[0]
        made.append(event(
            kind, number * 7 * DAY / records, f"n{number // len(kinds) % nodes}", source=source, severity=FATAL,
            uid=1000 + number % accounts, job=1 + number // (len(kinds) * nodes), step="0", run=0,
            subject="gpu:GPU-1", body=bad[kind],
        ))  # fmt: skip
    return made


@pytest.mark.parametrize("accounts", [1, 3, 30])
def test_forged_records_conclude_nothing_but_re_vets(accounts: int) -> None:
    engine = Engine(rules(CATALOGUE))
    out = [one for each in forged(accounts, 10_000) for one in engine.take(each)]
    out += waited(engine, 8 * DAY)
    opened = [one for one in out if one.state == "open"]
    assert {one.action for one in opened} <= {REVET}
    days: dict[int, int] = {}
    for one in opened:
        days[int(one.time // DAY)] = days.get(int(one.time // DAY), 0) + 1
    assert max(days.values(), default=0) <= 2 * min(BY_USERS, PER_USER * accounts)
    if accounts == 30:
        assert opened, "records as bad as these ask for a re-vet"


def test_the_same_records_conclude_more_where_they_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "doer", lambda event: event.source if event.source != USER else KERNEL)
    engine = Engine(rules(CATALOGUE))
    out = [one for each in forged(3, 10_000) for one in engine.take(each)]
    assert {one.action for one in out} - {REVET}


@pytest.mark.parametrize("action", [one for one in ACTIONS if one != REVET])
@pytest.mark.parametrize("kind", [*USERS_ONLY, *trust.PROVOKED])
def test_a_rule_that_concludes_more_from_users_is_refused(kind: str, action: str) -> None:
    with pytest.raises(RuleError) as raised:
        rules(events=f'["link.flap", "{kind}"]', then=f'"{action}"')
    assert f"it would conclude '{action}' from {kind}" in raised.value.message
    assert raised.value.hint == 'what users bring about can ask for then = "revet", and nothing else'
    assert raised.value.location is not None
    assert raised.value.location.text == f'then = "{action}"'


@pytest.mark.parametrize("kind", [*USERS_ONLY, *trust.PROVOKED])
def test_a_rule_that_asks_for_a_re_vet_is_not(kind: str) -> None:
    assert rules(events=f'["{kind}"]', then='"revet"')


def _xid(number: object, source: str = KERNEL) -> Event:
    return event("gpu.xid", 0, source=source, body={"xid": number})


@pytest.mark.parametrize(
    ("of", "whose"),
    [
        (_xid(79), KERNEL), (_xid(48), KERNEL), (_xid(74), KERNEL),
        (_xid(13), USER), (_xid(31), USER), (_xid(43), USER), (_xid(45), USER), (_xid("79"), USER), (_xid(None), USER),
        (_xid(True), USER), (_xid(-79), USER), (_xid(10**9), USER), (_xid(79, USER), USER),
        (event("step.outcome", 0), USER), (event("vet.verdict", 0), USER), (event("kernel.oom", 0), USER),
        (event("slurm.node_state", 0, body={"reason": "Kill task failed"}), USER),
        (event("slurm.node_state", 0, body={"reason": "broken fan"}), "site"),
        (event("spool.lost", 0), ROOT), (event("spool.lost", 0, uid=1000), USER),
        (event("slurm.job_end", 0, source="user"), USER), (event("memory.ecc", 0), KERNEL),
    ],
)  # fmt: skip
def test_whose_doing_it_is(of: Event, whose: str) -> None:
    assert trust.doer(of) == whose


def test_a_program_that_faults_takes_no_gpu_out() -> None:
    text = rules(events='["gpu.xid"]', then='"drain"', when='"count >= 1"')
    engine = Engine(text)
    assert [one for i in range(500) for one in engine.take(event("gpu.xid", 90 * i, body={"xid": 31}))] == []
    assert engine.take(event("gpu.xid", 90 * 500, body={"xid": 79}))


def test_users_hide_no_fault_behind_many_of_theirs() -> None:
    """What more nodes had at once is not the node's: but what users bring about is none of those."""
    text = rules(events='["gpu.xid"]', then='"drain"', when='"count >= 1"', alone="2", settle='"1min"')
    engine = Engine(text)
    theirs = [event("gpu.xid", 100 + i, f"n{i}", body={"xid": 31}, uid=7, job=1) for i in range(10)]
    for one in (*theirs, event("gpu.xid", 110, "n3", body={"xid": 79})):
        assert engine.take(one) == []
    assert [one.node for one in waited(engine, 900)] == ["n3"]


def test_one_account_asks_for_few_re_vets_and_many_for_few_more() -> None:
    text = rules(events='["vet.verdict"]', when='"count >= 1"', then='"revet"')

    def failed(after: float, accounts: int) -> list[Event]:
        return [event("vet.verdict", after + i, f"n{i}", uid=1000 + i % accounts) for i in range(300)]

    for accounts, most in ((1, PER_USER), (2, 2 * PER_USER), (30, BY_USERS)):
        engine = Engine(text)
        assert len([one for each in failed(0, accounts) for one in engine.take(each)]) == most
        assert engine.revets.refused == 300 - most
        assert len([one for each in failed(DAY + 400, accounts) for one in engine.take(each)]) == most


def test_a_node_is_asked_for_once_a_day() -> None:
    text = rules(events='["vet.verdict"]', when='"count >= 1"', then='"revet"', recovery='["boot"]')
    engine = Engine(text)
    out = []
    for hour in range(48):
        out += engine.take(event("vet.verdict", hour * 60 * MINUTE, uid=hour, job=1 + hour))
        out += engine.take(event("node.start", hour * 60 * MINUTE + 60))
    assert [one.state for one in out] == ["open", "closed"] * 2


def test_the_sites_own_word_is_not_kept_waiting_by_users() -> None:
    text = rules(CATALOGUE)
    engine = Engine(text)
    flood = [event("vet.verdict", i, f"m{i % 500}", uid=i % 30, job=1 + i, body={"state": "fail"}) for i in range(3000)]
    for one in flood:
        engine.take(one)
    assert engine.revets.refused
    (out,) = engine.take(event("site.revet", DAY / 2, body={"outcome": "bad"}))
    assert (out.rule, out.action) == ("revet-failed", "drain")
