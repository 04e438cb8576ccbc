"""A history replayed: the live conclusions byte for byte, what they would have cost; and one from accounting alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.central import rulefiles
from piolet.central.conclusions import encode
from piolet.central.rules.engine import Engine
from piolet.central.rules.replay import is_failure, replay, table
from piolet.central.store.database import connect
from piolet.central.store.writer import Arrival, Writer
from piolet.cli.main import main
from piolet.events.envelope import FATAL, Event
from piolet.events.envelope import encode as line_of

from tests.simulators import fleet
from tests.unit.central.making import CATALOGUE, DAY, HOUR, MINUTE, RULE, START, event, rules


def test_a_replay_is_what_was_live_byte_for_byte() -> None:
    events, _ = fleet.simulate(11, fleet.Fleet(nodes=200, days=40, rate=2e-3, largest=32))
    history = [(each, received) for received, each in events]
    live = Engine(rules(CATALOGUE, missing='"20h"'))
    lines = b"".join(encode(one) for each, received in history for one in live.take(each, received))
    done = replay(rules(CATALOGUE, missing='"20h"'), history)
    assert b"".join(map(encode, done.conclusions)) == lines
    assert lines.count(b"\n") > 50
    assert (done.events, done.nodes) == (len(history), 200)


def test_the_store_replayed_is_what_was_live_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = fleet.simulate(12, fleet.Fleet(nodes=100, days=20, rate=5e-3, largest=32, lost=0, twice=0, late=0))
    arrivals = [Arrival(one.node, [one], received) for received, one in made if not one.kind.startswith(("sl", "si"))]
    url = f"sqlite:///{tmp_path}/store"
    writer, live = Writer(connect(url, create=True)), Engine(rulefiles.read())
    stored = [one for taken in writer.append(arrivals) for one in taken.stored]
    assert len(stored) > 5000  # what a stream's earlier record overtook is not taken
    lines = [encode(one) for each in stored for one in live.take(each.event, each.received)]
    assert len(lines) > 50
    (tmp_path / "piolet.toml").write_text(f'[central]\nstore = "{url}"\ncluster = "fleet"\n')
    words = ["--config", str(tmp_path / "piolet.toml"), "central", "replay", "--conclusions", "--since", "9000d"]
    assert main(words) == 0
    assert capsys.readouterr().out.encode() == b"".join(lines)


def _drains(*after: float) -> list[Event]:
    return [event("gpu.lost", one, severity=FATAL, subject="gpu:1") for one in after]


DRAINS = {"events": '["gpu.lost"]', "when": '"count >= 2"', "then": '"drain"', "window": '"7d"'}


def test_what_it_would_have_cost_and_prevented() -> None:
    history = [*_drains(0, 2 * HOUR, 3.5 * HOUR, 3.6 * HOUR, 9 * HOUR), event("site.repair", 12 * HOUR),
               *_drains(20 * HOUR, 22 * HOUR), event("node.heartbeat", 30 * HOUR)]  # fmt: skip
    done = replay(rules(**DRAINS), [(one, None) for one in history])
    (outcome,) = done.outcomes.values()
    assert (outcome.cases, outcome.nodes, outcome.prevented, outcome.first) == (2, {"n1"}, 2, START + 2 * HOUR)
    assert outcome.hours == pytest.approx(10 + 8)
    assert done.failures == 6
    assert table(done) == [
        "rule  would  cases  nodes  node-hours out  failures after",
        "few   drain      2      1              18               2",
    ]


def test_since_when_it_is_told() -> None:
    history = [(one, None) for one in (*_drains(0, 2 * HOUR), event("node.heartbeat", 30 * DAY))]
    done = replay(rules(**DRAINS), history, START + DAY)
    (outcome,) = done.outcomes.values()
    assert (outcome.cases, done.conclusions, done.failures) == (0, [], 0)
    assert outcome.hours == pytest.approx(29 * 24)
    assert table(done) == ["no rule concludes anything"]


@pytest.mark.parametrize(
    ("of", "so"),
    [
        (event("gpu.xid", 0, severity=FATAL, body={"xid": 79}), True),
        (event("gpu.xid", 0, severity=FATAL, body={"xid": 31}), False),
        (event("slurm.node_state", 0, body={"state": "down"}), True),
        (event("slurm.node_state", 0, body={"state": "powered_down"}), False),
        (event("slurm.node_state", 0, body={"state": "drain"}), False),
        (event("slurm.job_end", 0, source="site", body={"state": "NODE_FAIL", "nodes": "n1"}), True),
        (event("slurm.job_end", 0, source="site", body={"state": "NODE_FAIL", "nodes": "n[1-4]"}), False),
        (event("step.outcome", 0, severity=FATAL, body={"signal": 9}), False),
        (event("node.heartbeat", 0), False),
    ],
)
def test_what_is_a_failure(of: Event, so: bool) -> None:
    assert is_failure(of) is so


SACCT = """JobIDRaw|JobID|UID|State|ExitCode|NodeList|Submit|Start|End
101|101|1001|FAILED|1:0|n7|1800000000|1800000010|1800000100
102|100_4|1002|FAILED|0:11|n7|1800003600|1800003610|1800003700
103|103|1003|COMPLETED|0:0|n7|1800003600|1800003610|1800003700
104|104|1003|FAILED|0:6|n[7-9]|1800003600|1800003610|1800003700
105|105|1003|FAILED|0:6|n7|1800007200|1800007210|1800007300
106|106|1004|NODE_FAIL|1:0|n[8-9]|1800007200|1800007210|1800007300
"""
SACCTMGR = """NodeName|TimeStart|TimeEnd|State|Reason|User
n9|1800000000|1800000300|DOWN*|Not responding|slurm
n9|1800200000|1800200300|DOWN*|Not responding|slurm
n9|1800400000|1800400300|DOWN*|Not responding|slurm
n5|1800000000|1800000300|DOWN+POWERED_DOWN|Not responding|slurm
n5|1800200000|1800200300|DOWN+POWERED_DOWN|Not responding|slurm
n5|1800400000|1800400300|DOWN+POWERED_DOWN|Not responding|slurm
n6|1800000000|1800000300|DRAIN|test|root
"""


def _piolet(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["central", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_site_that_has_accounting_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs").write_text(SACCT)
    (tmp_path / "nodes").write_text(SACCTMGR)
    words = ("replay", "--sacct", str(tmp_path / "jobs"), "--sacctmgr", str(tmp_path / "nodes"))
    status, out, err = _piolet(capsys, *words)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "20 records of 5 nodes, 2027-01-15T08:00:00Z to 2027-01-19T23:11:40Z; 3 failures of nodes since "
        "2027-01-15T08:00:00Z"
    )
    assert [line.split() for line in lines[1:5]] == [
        ["rule", "would", "cases", "nodes", "node-hours", "out", "failures", "after"],
        ["failed-twice", "revet", "1", "1", "-", "1"],
        ["down-often", "ticket", "1", "1", "-", "0"],
        ["jobs-of-three-users", "revet", "1", "1", "-", "0"],
    ]
    status, out, _ = _piolet(capsys, *words, "--conclusions")
    assert [line.partition('"node":"')[2][:2] for line in out.splitlines()] == ["n7", "n9", "n9"]


def test_a_history_of_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.toml").write_text(RULE)
    (tmp_path / "events").write_bytes(b"".join(line_of(event("link.flap", i * 5 * MINUTE)) for i in range(3)))
    status, out, _ = _piolet(capsys, "replay", str(tmp_path / "rules.toml"), "--events", str(tmp_path / "events"))
    assert (status, out.splitlines()[1:]) == (0, [
        "rule  would   cases  nodes  node-hours out  failures after",
        "few   ticket      1      1               -               0",
    ])  # fmt: skip
    status, out, _ = _piolet(capsys, "replay", "--json", "--events", str(tmp_path / "events"))
    assert '"events": 3' in out


def test_how_many_spares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beats = [event("node.heartbeat", i * DAY, f"n{node:03d}") for node in range(100) for i in (0, 30)]
    failed = [event("gpu.lost", i * DAY, f"n{i:03d}", severity=FATAL) for i in range(20)]
    history = sorted([*beats, *failed], key=lambda one: one.time)
    (tmp_path / "events").write_bytes(b"".join(map(line_of, history)))
    status, out, _ = _piolet(capsys, "spares", "64", "24", "--events", str(tmp_path / "events"))
    assert (status, out) == (0, "2 spare nodes for 64 nodes over 24 h: 20 failures in 72,000 node-hours here\n")
    status, out, _ = _piolet(capsys, "spares", "64", "24", "--since", "1d", "--events", str(tmp_path / "events"))
    assert (status, out) == (0, "too little is known: 100 nodes heard of, for 2,400 node-hours\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["replay"], "there is no store at /var/lib/piolet-central/central.sqlite\nhint: piolet-central makes it"),
        (["replay", "--events", "/nowhere"], "cannot read /nowhere: No such file or directory"),
        (["replay", "--sacct", "/nowhere"], "cannot read /nowhere: No such file or directory"),
        (["replay", "--sacct", "/etc/passwd"], "/etc/passwd: line 1 of Slurm's accounting has 1 column, not 9"),
        (["replay", "--events", "{fifo}"], "fifo: it is not a regular file"),
        (["replay", "--events", "/dev/zero"], "cannot read /dev/zero: it is not a regular file"),
        (
            ["replay", "--sacctmgr", "{jobs}"],
            "jobs: line 1 of Slurm's accounting names no column 'nodename'\nhint",
        ),
        (
            ["replay", "--sacct", "{nodes}"],
            "nodes: line 1 of Slurm's accounting names no column 'jobidraw'\nhint",
        ),
        (["spares", "4", "9", "--since", ""], "--since is ''"),
        (["replay", "--sacct", "{cut}"], "cut is cut off: its last line does not end\nhint: export it again"),
        (["spares", "0", "24", "--events", "/nowhere"], "a job has from one node to 999,999"),
        (["spares", "4", "nan", "--slurm"], "takes more than no time"),
        (["replay", "--slurm", "--events", "x"], "there is one history"),
        (["replay", "--since", "yesterday", "--slurm"], "--since is 'yesterday'\nhint: a time like 90d or 12h"),
        (["replay", "/nowhere", "--slurm"], "cannot read /nowhere: No such file or directory"),
        (["rules", "check", "/dev/null"], "/dev/null is not a regular file"),
        (["rules", "check", "{bad}"], "bad.toml:8:9: rule 'few': when: there is no 'cont' here"),
        (["rules", "check", "{bytes}"], "is not UTF-8"),
        (["replay", "--events", "{bytes}"], "bytes:1: a record is no JSON"),
    ],
)
def test_errors_are_sentences(words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(RULE.replace('"count', '"cont'))
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    (tmp_path / "cut").write_text(SACCT[:-2])
    (tmp_path / "jobs").write_text(SACCT)
    (tmp_path / "nodes").write_text(SACCTMGR)
    os.mkfifo(tmp_path / "fifo")
    names = {name.partition(".")[0]: tmp_path / name for name in ("bad.toml", "bytes", "cut", "fifo", "jobs", "nodes")}
    words = [word.format(**names) for word in words]
    status, out, err = _piolet(capsys, *words)
    assert status in (1, 2)
    assert out == ""
    assert error in err
    assert "Traceback" not in err


def test_rules_are_listed_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _piolet(capsys, "rules", "list")
    assert status == 0
    assert "steps-of-three-users: steps died here alone\n  when    users >= 3   (of step.outcome; 7 days)\n" in out
    assert "  would   the site would be asked to vet the node again\n" in out
    (tmp_path / "rules.toml").write_text(RULE)
    status, out, _ = _piolet(capsys, "rules", "check", str(tmp_path / "rules.toml"))
    assert (status, out) == (0, f"{tmp_path}/rules.toml: 1 rule, all right\n")
