"""The runner: whatever an eval does, there is one record with a reason, in time."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import signal
import time
from pathlib import Path

import pytest
from piolet.api import FAIL, INCONCLUSIVE, PASS, Context, Inconclusive
from piolet.vet.evals import mounts
from piolet.vet.runner import records, runner, scratch
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

HERE = str(Path(__file__).parent)


def task(name: str, **changes: object) -> Task:
    one = Task(name, name, f"naughty:{name}", search=(HERE,), timeout_s=5.0)
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def run(
    tmp_path: Path, *tasks: Task, seconds: float = 20.0, resolve: runner.Resolve | None = None, resolve_s: float = 5.0
) -> dict[str, Record]:
    found: list[Record] = []
    context = Context("n1", time.monotonic() + seconds, scratch=str(tmp_path))
    runner.run(tasks, context, found.append, resolve, resolve_s)
    assert len(found) == len(tasks)
    assert list(tmp_path.glob("piolet-vet-*")) == []
    return {record.eval: record for record in found}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Raises", "ValueError: the second line"),
        ("Exits", "SystemExit: good bye"),
        ("Vanishes", "its process ended with status 7 and without an answer"),
        ("Killed", "its process was killed by SIGKILL"),
        ("Crashes", "its process was killed by SIGSEGV"),
        ("ReturnsTrue", "returned bool, not a Verdict"),
        ("NoEval", "is no eval"),
        ("Absent", "has no class 'Absent'"),
    ],
)
def test_what_goes_wrong_is_inconclusive_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    record = run(tmp_path, task(name))[name]
    assert record.outcome == INCONCLUSIVE
    assert reason in record.reason


def test_a_class_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "quits.py").write_text("import sys; sys.exit(0)\n")
    tasks = [task(name, target=f"{name}:X", search=(str(tmp_path),)) for name in ("absent", "broken", "wrong", "quits")]
    found = run(tmp_path, *tasks)
    assert {record.outcome for record in found.values()} == {INCONCLUSIVE}
    assert "there is no module 'absent'" in found["absent"].reason
    assert "there is no module 'no_such_library'" in found["broken"].reason
    assert "invalid syntax" in found["wrong"].reason


def test_parameters_that_a_class_does_not_take(tmp_path: Path) -> None:
    record = run(tmp_path, task("Fine", parameters={"speed": 3}))["Fine"]
    assert record.outcome == INCONCLUSIVE
    assert "speed" in record.reason


def test_what_it_printed_is_kept(tmp_path: Path) -> None:
    record = run(tmp_path, task("Vanishes"))["Vanishes"]
    assert record.details["printed"] == "last words"


def test_a_hung_eval_is_killed_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    found = run(tmp_path, task("Hangs", timeout_s=0.5), task("Fine"))
    assert time.monotonic() - started < 3.0
    assert found["Hangs"].reason == "it did not answer within 0.5 s"
    assert found["Fine"].outcome == PASS


def test_the_budget_ends_everything(tmp_path: Path) -> None:
    started = time.monotonic()
    slow = [task(f"s{i}", target="naughty:Hangs", loads=("cpu",)) for i in range(3)]
    found = run(tmp_path, *slow, seconds=0.6)
    assert time.monotonic() - started < 3.0
    assert found["s0"].reason == "it did not answer before the budget was spent"
    assert found["s2"].reason == "the budget was spent before its turn came"


def test_loads_run_one_after_the_other_and_others_beside(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    loaded = {"seconds": 0.2, "mark": str(mark)}
    tasks = [task(f"l{i}", target="naughty:Fine", parameters=loaded, loads=("cpu", "memory")) for i in range(3)]
    tasks += [task(f"q{i}", target="naughty:Fine", parameters={"seconds": 0.5}) for i in range(6)]
    started = time.monotonic()
    found = run(tmp_path, *tasks)
    assert time.monotonic() - started < 2.5  # one after the other the six would take 3 s
    assert {record.outcome for record in found.values()} == {PASS}
    assert mark.read_text().split() == ["begin", "end"] * 3


@pytest.mark.parametrize("name", ["Chatty", "Huge", "Strange"])
def test_odd_answers_still_pass(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, task(name))[name].outcome == PASS


def test_what_an_eval_leaves_behind_is_ended(tmp_path: Path) -> None:
    record = run(tmp_path, task("LeavesAChild"))["LeavesAChild"]
    pid, end = int(record.details["pid"]), time.monotonic() + 5

    def runs() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    while runs():
        assert time.monotonic() < end, "the child still runs"


def test_a_verdict_counts_when_it_is_whole_and_not_when_the_pipe_is_closed(tmp_path: Path) -> None:
    started = time.monotonic()
    found = run(tmp_path, task("Forks"), task("ForksAndDies"), task("ForksTwoAnswers"))
    assert time.monotonic() - started < 4.0
    assert found["Forks"].outcome == PASS
    assert found["ForksAndDies"].reason == "its process ended with status 7 and without an answer"
    assert (found["ForksTwoAnswers"].outcome, found["ForksTwoAnswers"].reason) == (FAIL, "the parent says so")


def test_a_mount_that_nobody_can_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that looks hangs in the kernel, holds everything open that it was given, and takes no signal."""
    held = tmp_path / "held.pid"

    def hangs(path: str, write: bool) -> str:
        if os.fork() == 0:
            os.setsid()  # no signal to the group reaches it, nor one to its parent
            held.write_text(str(os.getpid()))
            time.sleep(60)
        time.sleep(60)
        return ""

    monkeypatch.setattr(mounts, "_look", hangs)
    one = task("mounts", target="piolet.vet.evals.mounts:Mounts", parameters={"paths": ["/hung/fs"], "answer": 0.5})
    started = time.monotonic()
    try:
        record = run(tmp_path, one)["mounts"]
    finally:
        os.kill(int(held.read_text()), signal.SIGKILL)
    assert time.monotonic() - started < 4.0
    assert (record.outcome, record.reason) == (FAIL, "/hung/fs did not answer within 0.5 s")


def test_a_reason_is_one_line_and_bounded(tmp_path: Path) -> None:
    found = run(tmp_path, task("Shouts"))["Shouts"]
    assert found.outcome == INCONCLUSIVE
    assert found.reason.startswith("a\\nleft out: node1: forged\\r\\x1b[2J\\u2028xxx")
    assert len(found.reason) == records.REASON_MAX and found.reason.isprintable()
    line = records.encode_record(found)
    assert len(line) < records.LINE_MAX
    again = records.decode(line.rstrip())
    assert again is not None and records.to_record(again[1]) == found


@pytest.mark.parametrize("target", ["naughty:{}", f"{HERE}/naughty.py:{{}}"])
def test_how_values_compare_comes_from_the_class_that_was_loaded(tmp_path: Path, target: str) -> None:
    tasks = [task(name, target=target.format(name), baseline="peers") for name in ("Rate", "Undecided", "Misspelt")]
    found = run(tmp_path, *tasks)
    rate = found["Rate"]
    assert (rate.outcome, rate.better, rate.effect, rate.unit, rate.value) == (PASS, "higher", 0.3, "GB/s", 100.0)
    for name, said in (("Undecided", "does not say what is better"), ("Misspelt", "says better = 'bigger'")):
        assert found[name].outcome == INCONCLUSIVE
        assert f"{name} cannot be compared with peers: its class {said}" in found[name].reason
    # Without a baseline nothing is compared.
    assert run(tmp_path, task("Undecided", target=target.format("Undecided")))["Undecided"].outcome == PASS


def test_requirements_come_before_the_class_and_have_a_bound_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "helper.py").write_text("VALUE = 1\n")
    (tmp_path / "late.py").write_text("import helper\nfrom naughty import Fine\n\nclass Late(Fine):\n    pass\n")
    one = task("Late", target="late:Late", search=(str(tmp_path), HERE), requirements=(("helper",),), timeout_s=1.0)

    def resolve(wanted: Task) -> list[str]:
        time.sleep(1.3)
        return [str(tmp_path / "site")]

    assert run(tmp_path, one, resolve=resolve)["Late"].outcome == PASS


def test_requirements_that_do_not_come(tmp_path: Path) -> None:
    one = task("Fine", requirements=(("x",),))

    def fails(wanted: Task) -> list[str]:
        raise Inconclusive("cannot install x: no network")

    def hangs(wanted: Task) -> list[str]:
        time.sleep(1000)
        return []

    assert run(tmp_path, one, resolve=fails)["Fine"].reason == "cannot install x: no network"
    assert (
        "requirements were not installed within 0.3 s"
        in run(tmp_path, one, resolve=hangs, resolve_s=0.3)["Fine"].reason
    )


def test_the_deadline_that_an_eval_sees_is_before_its_end(tmp_path: Path) -> None:
    record = run(tmp_path, task("Fine", timeout_s=2.0))["Fine"]
    assert 1.0 < float(record.details["remaining"]) < 2.0


def lines(plan: Plan, tmp_path: Path, known: dict[str, Record]) -> list[tuple[str, dict[str, object]]]:
    reading, writing = os.pipe()
    context = Context("n1", time.monotonic() + 10, scratch=str(tmp_path))
    runner.run_plan(plan, "host", context, functools.partial(runner.write_all, writing), known=known)
    os.close(writing)
    with open(reading, "rb") as file:
        found = [records.decode(line) for line in file.read().splitlines()]
    assert None not in found
    return [one for one in found if one is not None]


def test_the_lines_of_a_node(tmp_path: Path) -> None:
    plan = Plan("p", (task("Fine"), task("Raises"), task("Fine2", where="environment"), task("Fine3", scope="pair")))
    found = lines(plan, tmp_path, {})
    assert [kind for kind, _ in found] == ["hello", "verdict", "verdict", "end"]
    assert found[-1][1]["evals"] == 2


def test_what_is_known_is_not_judged_again(tmp_path: Path) -> None:
    one = task("Raises")
    known = Record("old", "other", "x", PASS, value=3.0)
    found = lines(Plan("p", (one,)), tmp_path, {one.digest(): known})
    verdict = found[1][1]
    assert (verdict["outcome"], verdict["cached"], verdict["node"], verdict["eval"]) == (PASS, True, "n1", "Raises")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this user's own, and nothing that a run still holds or has made just now."""
    held, left, shared = (tmp_path / f"piolet-vet-{name}" for name in ("held", "left", "shared"))
    for path in (held, left):
        path.mkdir(0o700)
        (path / "data").write_text("x")
    shared.mkdir(0o755)
    monkeypatch.setattr(scratch, "_SETTLED_S", 3600.0)
    with scratch.directory(str(tmp_path)):
        assert left.is_dir()
    monkeypatch.setattr(scratch, "_SETTLED_S", -1.0)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with scratch.directory(str(tmp_path)) as outer, scratch.directory(str(tmp_path)) as inner:
        assert {path.name for path in tmp_path.iterdir()} == {
            held.name, shared.name, Path(outer).name, Path(inner).name,
        }  # fmt: skip
    os.close(lock)
