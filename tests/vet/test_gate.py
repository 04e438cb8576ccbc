"""`piolet vet gate` as the plugin calls it, with commands in Slurm's place: what is vetted, and what comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from piolet.api import FAIL, INCONCLUSIVE, PASS
from piolet.vet import step

from tests.support.waiting import wait_until
from tests.vet.recorded import NODES, PROTOCOL, SRUN, Slurm, labelled, told, verdict


def test_submit_looks_at_the_protocol_only(slurm: Slurm) -> None:
    assert slurm.gate("sbatch job.sh", stage="submit") == (0, [], "")
    (slurm.directory / "p.yaml").write_text("evals:\n- type: gpux\n")
    status, _, said = slurm.gate("sbatch job.sh", stage="submit")
    assert status == 1 and "there is no eval 'gpux'" in said
    status, _, said = slurm.gate("sbatch job.sh", "nothing.yaml", stage="submit")
    assert status == 1 and "nothing.yaml" in said
    assert slurm.calls == []


def test_a_protocol_that_is_too_long_is_refused(slurm: Slurm) -> None:
    evals = "".join(f"- {{type: limits, name: n{number}}}\n" for number in range(400))
    (slurm.directory / "p.yaml").write_text("evals:\n" + evals)
    status, _, said = slurm.gate("sbatch job.sh", stage="submit")
    assert status == 1 and "more than 98048" in said


def test_good_nodes(slurm: Slurm) -> None:
    status, words, said = slurm.gate()
    assert (status, words) == (0, []), said
    assert "4 of 4 nodes good" in said
    assert slurm.calls[0].startswith("--overlap --jobid=7 --nodes=4 --ntasks=4 --ntasks-per-node=1 --environment=none")
    assert slurm.calls[0].endswith(" /x/vet-task /x/vet.sock")
    assert json.loads((slurm.directory / "log.plan").read_text())["tasks"][0]["kind"] == "limits"
    assert "SLURM_NTASKS=" not in (slurm.directory / "log.env").read_text()
    result = json.loads(slurm.result.read_text())
    assert result["job"] == "7" and {one["state"] for one in result["nodes"].values()} == {"good"}


def decided(slurm: Slurm) -> tuple[str, dict[str, object]]:
    """Return the step that told a node's pioletd what was decided, and what it told."""
    path = slurm.directory / "log.decision"
    wait_until(path.exists, what="the step")
    words, _, text = path.read_text().partition("\n")
    return words, json.loads(text)


def test_where_there_is_no_pioletd_a_step_tells_that_of_a_good_node(slurm: Slurm) -> None:
    """As on a login node; srun does not wait for it."""
    slurm.record(b"".join(told(node, FAIL if node == "node1" else PASS, "bad") for node in NODES))
    (slurm.directory / "recorded.untold").touch()
    begun = time.monotonic()
    assert slurm.gate()[0] == 0
    assert time.monotonic() - begun < 15
    words, said = decided(slurm)
    assert words.startswith("--overlap --jobid=7 --nodes=1 --ntasks=1 --nodelist=node2 --environment=none --vet=none ")
    assert words.endswith(" --time=1 /x/vet-task /x/vet.sock decision")
    assert said["claimed"] == 7 and said["excluded"] == "node1" and said["chosen"] == "node[2-4]"


def test_it_is_told_before_the_allocation_is_given_back(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL, "bad") for node in NODES))
    assert slurm.gate("srun -N4 app", "p.yaml,retries=0", stage="allocated")[0] != 0
    assert (slurm.directory / "log.decision").exists() and slurm.calls[-1] == "scancel 7"
    assert decided(slurm)[1]["excluded"] == "node[1-4]"


def test_the_sites_bound_for_installing_travels(slurm: Slurm) -> None:
    with open(slurm.directory / "piolet.toml", "a") as file:
        file.write("[vet]\nrequirements_timeout_s = 7\n")
    assert slurm.gate()[0] == 0
    assert json.loads((slurm.directory / "log.plan").read_text())["requirements_s"] == 7


def test_a_bad_node_is_left_out(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "memlock is low") for node in NODES))
    status, words, said = slurm.gate("srun -N3 --vet=p.yaml app -N 9")
    assert status == 0
    assert words == ["srun", "--exclude=node2", "-N3", "--vet=none", "app", "-N", "9"]
    assert "bad (unclear): node2: limits: memlock is low\nleft out: --exclude=node2\n" in said
    assert "spares: 0 of 1 left; with so many bad ones, 3 good nodes take -N 4" in said
    assert "going on with 3 of 4 nodes, without node2" in said
    result = json.loads(slurm.result.read_text())
    assert result["chosen"] == ["node1", "node3", "node4"]


def test_too_few_good_nodes(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    status, words, said = slurm.gate("srun app")
    assert (status, words) == (3, [])
    assert "the application was not started: 4 good nodes are needed, and there are 3" in said
    status, words, _ = slurm.gate("srun app", "p.yaml,min_nodes=3")
    assert (status, words[:4]) == (0, ["srun", "--exclude=node2", "--nodes=3", "--ntasks=12"])


def test_all_nodes_bad(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL, "bad") for node in NODES))
    status, words, said = slurm.gate("srun -N1 app")
    assert (status, words) == (3, []) and "0 of 4 nodes good" in said


def test_on_fail_abort(slurm: Slurm) -> None:
    (slurm.directory / "p.yaml").write_text(PROTOCOL + "  on_fail: abort\n")
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    assert slurm.gate("srun -N1 app")[0] == 3


@pytest.mark.parametrize(
    ("printed", "errors", "reason"),
    [
        (b"", "", "its task ended without a word"),
        (labelled("node2", b"not from us\n\xff\xfe\n{}\n[]\n"), "", "[]"),
        (labelled("node2", verdict("node2")), "", ""),  # no end: what it told counts, and nothing was left open
        (labelled("node2", b'{"error": "cannot vet on this node: no"}\n'), "", "cannot vet on this node: no"),
        (b"", "1: piolet: error: cannot reach pioletd at /x\n1: hint: is it up?\n", "cannot reach pioletd at /x"),
        (b"", "srun: error: node2: task 1: Killed\n", "its task ended: Killed"),
        (b"", "srun: error: Unable to create step for job 7: no\n", "the vet step failed: Unable to create step"),
        (labelled("node2", verdict("node1", FAIL, "a lie")), "", ""),  # a node speaks for itself only
    ],
)
def test_a_node_that_tells_too_little(slurm: Slurm, printed: bytes, errors: str, reason: str) -> None:
    slurm.record(b"".join(told(node) for node in NODES if node != "node2") + printed, errors)
    status, words, said = slurm.gate()
    assert status == 0, said
    rows = json.loads(slurm.result.read_text())["records"]
    found = {row["node"]: row for row in rows}
    assert {row["outcome"] for node, row in found.items() if node != "node2"} == {PASS}
    if found["node2"]["outcome"] != PASS and reason:
        assert words[1] == "--exclude=node2"
        assert found["node2"]["outcome"] == INCONCLUSIVE
        assert reason in found["node2"]["reason"]


def test_a_node_that_hangs_ends_with_the_budget(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    from piolet.vet.catalogue import catalogue
    from piolet.vet.protocol import load

    slurm.record(b"".join(told(node) for node in NODES if node != "node3"), hang=True)
    monkeypatch.setattr(step, "apart_s", lambda nodes: 0.5)
    monkeypatch.setattr(step, "_END_S", 0.3)
    plan = load(str(slurm.directory / "p.yaml"), catalogue())
    where = str(slurm.directory)
    environ = {"PATH": "/usr/bin:/bin", "LOG": f"{where}/log", "RECORDED": f"{where}/recorded"}
    started = time.monotonic()
    found = step.run(plan, NODES, step.Launch(f"{where}/srun", 7, "task", "socket"), environ)
    assert time.monotonic() - started < 10
    assert found.lost == {"node3": "it did not finish within the budget"}
    assert found.decision(plan, NODES).bad == ["node3"]


def test_long_details_come_whole(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, x="y" * 9000) for node in NODES))
    assert slurm.gate()[0] == 0
    rows = json.loads(slurm.result.read_text())["records"]
    assert {row["details"]["x"] for row in rows} == {"y" * 9000}


def test_no_other_nodes_can_be_had(slurm: Slurm) -> None:
    """Slurm is asked before the allocation is given back: the status is 3, and not that of an srun that fails."""
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    srun = slurm.directory / "srun"
    refusal = 'case "$*" in --test-only*) echo "allocation failure: not available" >&2; exit 1;; esac'
    srun.write_text(SRUN.replace("#!/bin/sh\n", f"#!/bin/sh\n{refusal}\n"))
    status, words, said = slurm.gate("srun -N4 app", stage="allocated")
    assert (status, words) == (3, [])
    assert "no other nodes than node2 can be had: not available" in said
    assert slurm.calls[-1] == "scancel 7"


@pytest.mark.parametrize(("retries", "why"), [(1, "no other nodes than node2 can be had"), (0, "no further try")])
def test_fewer_nodes_where_no_others_can_be_had(slurm: Slurm, retries: int, why: str) -> None:
    """Slurm lets no srun give back a part of its nodes: it gives back all and asks for the good ones."""
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    srun = slurm.directory / "srun"
    refusal = 'case "$*" in --test-only*) echo "allocation failure: not available" >&2; exit 1;; esac'
    srun.write_text(SRUN.replace("#!/bin/sh\n", f"#!/bin/sh\n{refusal}\n"))
    asked = f"p.yaml,min_nodes=3,retries={retries}"
    status, words, said = slurm.gate(f"srun -N4 -n8 --vet={asked} app -n 9", asked, stage="allocated")
    assert status == 0, said
    expected = "srun --exclude=node2 --nodes=3 --ntasks=6 --vet=p.yaml,retries=0,min_nodes=3 app -n 9"
    assert " ".join(words) == expected
    assert why in said and "giving job 7 back and asking for 3 nodes, without node2" in said
    assert slurm.calls[-1] == "scancel 7"
    # Two good ones are too few.
    slurm.record(b"".join(told(node, FAIL if node in ("node2", "node3") else PASS, "bad") for node in NODES))
    status, words, said = slurm.gate("srun -N4 app", asked, stage="allocated")
    assert (status, words) == (3, []) and "the application was not started" in said


def test_inside_an_environment_that_there_is_not(slurm: Slurm) -> None:
    (slurm.directory / "p.yaml").write_text(PROTOCOL + "- {type: env, where: environment}\n")
    for command in ("srun app", "srun --environment=none app"):
        status, _, said = slurm.gate(command)
        assert status == 3 and "the application has no environment (--environment)" in said
    assert slurm.gate("srun app", "p.yaml,on_inconclusive=warn")[0] == 0


@pytest.mark.parametrize(
    ("given", "environ", "words"),
    [
        ("my", {}, ("--environment=my",)),
        ("none", {"SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment": "my"}, None),
        (None, {"SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment": "my"}, ()),
        (None, {"_SLURM_SPANK_OPTION_piolet_environment_environment": "none"}, None),
        (None, {}, None),
    ],
)
def test_which_environment_the_second_step_asks_for(
    given: str | None, environ: dict[str, str], words: tuple[str, ...] | None
) -> None:
    assert step.environment_words(given, environ) == words


def test_a_report_of_ones_own(slurm: Slurm) -> None:
    assert slurm.gate("srun app", "p.yaml,report=sub/r.json")[0] == 0
    assert (slurm.directory / "sub" / "r.json").exists()
    assert not slurm.result.exists()
    (slurm.directory / "file").touch()
    status, _, said = slurm.gate("srun app", "p.yaml,report=file/r.json,budget=2s")
    assert status == 0 and "warning: cannot write file/r.json" in said


@pytest.mark.parametrize(
    ("words", "request_text", "message"),
    [
        ("srun --relative=1 -N2 app", "p.yaml", "no node can be left out of an srun with --relative"),
        ("srun -N2 app", "p.yaml,what=1", "--vet has no setting 'what'"),
        ("srun --unknown app", "p.yaml", "'--unknown' is no option of srun that Piolet knows"),
    ],
)
def test_refusals(slurm: Slurm, words: str, request_text: str, message: str) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    status, found, said = slurm.gate(words, request_text)
    assert (status, found) == (1, []) and message in said


def test_an_allocation_with_good_nodes_is_used(slurm: Slurm) -> None:
    assert slurm.gate("srun -N4 app", stage="allocated")[:2] == (0, [])
    assert not any(call.startswith("scancel") for call in slurm.calls)


def test_an_allocation_with_a_bad_node_is_given_back(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    status, words, said = slurm.gate("srun -N4 --vet=p.yaml app", stage="allocated")
    assert (status, words) == (0, ["srun", "--exclude=node2", "-N4", "--vet=p.yaml,retries=0", "app"])
    assert "asking for other nodes than node2" in said
    assert slurm.calls[-1] == "scancel 7"
    status, words, said = slurm.gate("srun -N4 app", "p.yaml,retries=0", stage="allocated")
    assert (status, words) == (3, []) and "no further try is allowed" in said
    assert slurm.calls[-1] == "scancel 7"


def test_an_applications_words_say_nothing_of_the_allocation(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    status, words, said = slurm.gate("srun -N4 app --jobid=5", stage="allocated")
    assert (status, words[-2:]) == (0, ["app", "--jobid=5"]), said
    assert slurm.calls[-1] == "scancel 7"


def test_an_error_gives_the_allocation_back(slurm: Slurm) -> None:
    (slurm.directory / "p.yaml").write_text("")
    assert slurm.gate("srun -N4 app", stage="allocated")[0] == 1
    assert slurm.calls == ["scancel 7"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupted_vetting_leaves_nothing(slurm: Slurm, number: signal.Signals, stubborn: bool) -> None:
    """The plugin sends its signal every 100 ms, and kills the command after 2 s."""
    text = PROTOCOL + "- {type: nccl_bandwidth, backend: gloo, ranks: 1}\n"
    (slurm.directory / "p.yaml").write_text(text)
    slurm.record(b"")
    trap = "trap '' TERM; while :; do sleep 0.1; done" if stubborn else "exec sleep 600"
    mine = f'#!/bin/sh\necho "$$" > "$LOG.srun"\n{trap}\n'
    (slurm.directory / "srun").write_text(mine)
    process = slurm.start("srun -N4 app", "p.yaml", "allocated")
    pid = slurm.directory / "log.srun"
    wait_until(lambda: pid.exists() and bool(pid.read_text().strip()))
    assert list(slurm.directory.glob(".piolet-vet-*"))
    gate, step_pid = int((slurm.directory / "result.pid").read_text()), int(pid.read_text())
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < began + 5:
        with contextlib.suppress(ProcessLookupError):
            os.kill(gate, number)
        time.sleep(0.1)
    assert time.monotonic() - began < 2.0
    assert process.returncode == 130 and "interrupted" in process.communicate()[1]
    assert slurm.calls == ["scancel 7"]
    assert not list(slurm.directory.glob(".piolet-vet-*"))
    wait_until(lambda: not Path(f"/proc/{step_pid}").exists(), 5, "the end of what was killed")


def test_an_allocation_of_somebody_elses_is_never_given_back(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    for words, environ in (("srun --jobid=7 app", {}), ("srun --jobi 7 app", {}), ("srun app", {"SLURM_JOBID": "7"})):
        status, found, said = slurm.gate(words, stage="allocated", **environ)
        assert (status, found) == (3, []) and "did not make the allocation" in said
    # Nor where its options cannot be told apart.
    assert slurm.gate("srun --what --jobid=7 app", stage="allocated")[0] == 1
    assert not any(call.startswith("scancel") for call in slurm.calls)
