"""What is known of a job, gathered from sources put in the place of Slurm, the central service and the user's files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import PioletError, UsageError
from piolet.environment import pinned
from piolet.environment.definition import Definition
from piolet.images.info import Image
from piolet.observe import happened, job, jobtext, known, layout, marks, writing
from piolet.observe.job import Finding
from piolet.observe.known import Sources
from piolet.slurm import onejob
from piolet.slurm.onejob import JobName, ToldRun, ToldStep

from tests.unit.observe import journals
from tools import jobschema

START = 1_790_000_000.0
STEPS = (ToldStep("0", "python3", "FAILED", 1, 0, ("n1", "n2"), START + 1, START + 60),)
RUN = ToldRun(
    "112", 112, 0, "train", "alice", 1500, "ml", "main", "alps", "FAILED", "", 1, 0, ("n1", "n2"), 8, START - 10,
    START, START + 61, 600.0, "", "/home/alice/slurm-112.out", "sbatch train.sh", STEPS,
)  # fmt: skip
SECRET = "hf_abcdefghijklmnop"


def record(node: str, kind: str, seconds: float, source: str = "kernel", **more: Any) -> dict[str, Any]:
    return {
        "epoch": "0" * 16, "seq": more.pop("seq", 1), "node": node, "kind": kind, "source": source, "body": {},
        "time": START + seconds, **more,
    }  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.chdir(tmp_path)
    return Sources({"HOME": str(tmp_path)}, 1500, False, "", "alps", None)


def answering(records: dict[str, list[dict[str, Any]]], **more: Any) -> Callable[[str, float], dict[str, Any]]:
    return lambda node, _: {"records": records.get(node, []), "complete": True, **more}


def view(sources: Sources, *runs: ToldRun, name: str = "112") -> job.Job:
    return known.job(onejob.parse_name(name), runs or (RUN,), [], sources, START + 100)


def test_the_schema_is_the_documented_one() -> None:
    """Who changes it writes it anew (make man), and counts the version up where a field goes or means another thing."""
    assert jobschema.PLACE.read_text("utf-8") == jobschema.text()


def conforms(value: Any, schema: dict[str, Any], where: str = "") -> None:
    """Hold a value against as much of JSON Schema as ours uses."""
    if "anyOf" in schema:
        if value is None:
            assert {"type": "null"} in schema["anyOf"], where
            return
        schema = schema["anyOf"][0]
    if not schema:
        return
    kinds: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "array": (list, tuple)}
    if schema["type"] != "object":
        assert isinstance(value, kinds[schema["type"]]) and value is not True, where
        assert value in schema.get("enum", [value]) and value == schema.get("const", value), where
        for at, one in enumerate(value if schema["type"] == "array" else ()):
            conforms(one, schema["items"], f"{where}[{at}]")
        return
    assert isinstance(value, dict), where
    known = schema.get("properties", {})
    assert set(schema.get("required", ())) <= value.keys(), where
    for key, one in value.items():
        more = schema["additionalProperties"]
        assert key in known or more is not False, f"{where}.{key}"
        conforms(one, known.get(key, more), f"{where}.{key}")


def full(sources: Sources, tmp_path: Path) -> job.Job:
    """Return a view with something of everything."""
    kept = tmp_path / ".cache/piolet/env"
    image = Image("docker.io/library/debian:12", "site", "sha256:" + "a" * 64)
    definition = Definition("ml", ("/e/ml.toml",), image, set_env={"A": "1", "HF_TOKEN": SECRET})
    pinned.keep({"HOME": str(tmp_path)}, b"", definition)
    (kept / "112.0.job").symlink_to(pinned.hash_of(definition.to_json()))
    os.utime(kept / "112.0.job", (START, START), follow_symlinks=False)
    result = tmp_path / ".local/state/piolet/alps/vet/vet-112.json"
    result.parent.mkdir(parents=True)
    said = {
        "version": 1, "job": "112", "protocol": {"name": "before", "digest": "x"}, "started": START + 0.5,
        "seconds": 1.5, "nodes": {"n1": {"state": "good", "reasons": []}, "n2": {"state": "bad", "reasons": ["slow"]}},
        "chosen": ["n1"], "abort": "", "notes": [], "records": [],
    }  # fmt: skip
    result.write_text(json.dumps(said))
    records = {
        "n1": [
            record("n1", "step.outcome", 60, "user", job=112, step="0", body={"task": 1, "status": 1, "why": "exit"})
        ],
        "n2": [record("n2", "gpu.xid", 50, severity="fatal", body={"xid": 79, "text": "NVRM: Xid 79"})],
    }
    return view(
        replace(sources, central=answering(records)), replace(RUN, state="NODE_FAIL", run=0), replace(RUN, run=1)
    )


def test_everything_in_one_place(sources: Sources, tmp_path: Path) -> None:
    found = full(sources, tmp_path)
    conforms(json.loads(json.dumps(found.as_dict())), job.schema())
    (environment,) = found.environments
    assert (environment.digest, environment.files) == ("sha256:" + "a" * 64, ("/e/ml.toml",))
    assert environment.secrets == ("HF_TOKEN",) and 'A = "1"' in environment.definition
    (vetting,) = found.vettings
    assert (vetting.good, vetting.left_out, vetting.chosen) == (("n1",), {"n2": ("slow",)}, ("n1",))
    assert [one.kind for one in found.events] == ["gpu.xid", "step.outcome"]
    assert [(one.run, one.state) for one in found.earlier] == [(0, "NODE_FAIL")]
    assert found.why[0].kind == "gpu_error" and "n2" in found.why[0].sentence
    assert found.files["output"] == "/home/alice/slurm-112.out" and found.files["vetting"].endswith("vet-112.json")
    text = "\n".join(jobtext.whole(found))
    for word in (
        "left out: n2: slow",
        "XID 79",
        "run 0",
        "docker.io/library/debian@sha256",
        "HF_TOKEN",
        "slurm-112.out",
    ):
        assert word in text, word


def test_no_secret_is_in_it(sources: Sources, tmp_path: Path) -> None:
    found = full(sources, tmp_path)
    assert SECRET not in json.dumps(found.as_dict()) and SECRET not in "\n".join(jobtext.whole(found))


def test_what_is_missing_is_said(sources: Sources) -> None:
    assert any("no central service" in text for text in view(sources).missing)

    def fails(node: str, _: float) -> dict[str, Any]:
        raise PioletError("the central service does not answer")

    found = view(replace(sources, central=fails))
    assert found.missing == ("events of its nodes: the central service does not answer",)
    cut = view(replace(sources, central=answering({}, complete=False)))
    assert any("the latest ones only" in text for text in cut.missing)
    assert found.events == () and found.why[0].kind == "program"


def test_only_what_is_of_the_job(sources: Sources) -> None:
    """Of a node: what was said of it while the job had it, and of users what is of this job."""
    records = [
        record("n1", "gpu.xid", -3600, seq=1),
        record("n1", "gpu.xid", 30, seq=2),
        record("n1", "gpu.xid", 4000, seq=3),
        record("n1", "step.outcome", 30, "user", job=111, seq=4),
        record("n1", "step.outcome", 30, "user", job=112, seq=5),
        record("n1", "vet.decision", 30, "user", body={"claimed": 111}, seq=6),
        record("n1", "node.heartbeat", 30, seq=7),
        record("n1", "kernel.oom", 30, job=99, seq=8),
    ]
    found = view(replace(sources, central=answering({"n1": records})))
    assert [(one.kind, one.time - START) for one in found.events] == [("gpu.xid", 30), ("step.outcome", 30)]


def test_a_clock_that_is_ahead_is_put_right(sources: Sources) -> None:
    found = view(replace(sources, central=answering({"n1": [record("n1", "gpu.xid", 3630, offset=3600.0)]})))
    assert [one.time - START for one in found.events] == [30]


def test_of_many_nodes_some_are_asked_those_that_failed_first(sources: Sources) -> None:
    nodes = tuple(f"n{number}" for number in range(100))
    bad = replace(STEPS[0], nodes=("n77",))
    asked: list[str] = []

    def answer(node: str, _: float) -> dict[str, Any]:
        asked.append(node)
        return {"records": []}

    found = view(replace(sources, central=answer), replace(RUN, nodes=nodes, steps=(bad,)))
    assert len(asked) == happened.NODES_MOST and asked[0] == "n77"
    assert any("32 nodes at most" in text for text in found.missing)


def test_users_see_their_own_and_staff_all(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onejob, "runs_of", lambda *_: ([RUN], []))
    assert known.runs(JobName(112), sources)[0] == [RUN]
    bob = replace(sources, uid=1501)
    with pytest.raises(UsageError, match="job 112 is alice's, not yours"):
        known.runs(JobName(112), bob)
    staff = replace(bob, staff=True)
    assert known.runs(JobName(112), staff)[0] == [RUN]
    full(sources, tmp_path)
    seen = view(staff)
    assert seen.environments == () and any("only alice has them" in text for text in seen.missing)
    place = tmp_path / "site/alice/alps/score"
    place.mkdir(parents=True)
    journals.write(place / "112.0", journals.header())
    started = replace(RUN, start=journals.ORIGIN / 1e9, end=None, state="RUNNING")
    assert view(replace(staff, directory=str(tmp_path / "site/%u")), started).scores == ()
    assert view(replace(staff, uid=1500, directory=str(tmp_path / "site/%u")), started).scores


def test_a_result_of_an_earlier_job_of_that_number_is_not_this_ones(sources: Sources, tmp_path: Path) -> None:
    full(sources, tmp_path)
    assert view(sources).environments and view(sources).vettings
    for seconds in (-86400, 86400):  # the users' cache of environments is one for all clusters
        other = view(sources, replace(RUN, start=START + seconds, end=START + seconds + 60))
        assert other.environments == ()
    assert other.vettings == ()


def test_what_is_no_result_is_passed_over(sources: Sources, tmp_path: Path) -> None:
    for text in ("", "[]", '{"version": 1, "nodes": {"n": 5}, "records": [], "started": "x"}', "\0"):
        (tmp_path / "vet-112.json").write_text(text)
        assert view(sources).vettings == ()
    (tmp_path / "vet-112.json").unlink()
    os.mkfifo(tmp_path / "vet-112.json")
    assert view(sources).vettings == ()


def test_a_vetting_whose_file_is_gone_is_known_from_the_node(sources: Sources) -> None:
    body = {
        "claimed": 112, "protocol": "before", "state": {"good": "n[1-3]", "bad": "n4"}, "excluded": "n4",
        "why": {"n4": ["slow"]}, "chosen": "n[1-2]",
    }  # fmt: skip
    said = record("n1", "vet.decision", 1, "user", body=body)
    (vetting,) = view(replace(sources, central=answering({"n1": [said]}))).vettings
    assert (vetting.good, vetting.left_out, vetting.chosen) == (("n1", "n2", "n3"), {"n4": ("slow",)}, ("n1", "n2"))
    odd = record(
        "n1", "vet.decision", 1, "user", body={"claimed": 112, "state": 5, "why": [], "excluded": "n[[", "chosen": 7}
    )
    assert view(replace(sources, central=answering({"n1": [odd]}))).vettings[0].good == ()


def test_scores_are_of_this_run_and_of_this_cluster(sources: Sources, tmp_path: Path) -> None:
    """A data set of the same number from another year, and one of another cluster, are of other jobs."""
    place = tmp_path / ".local/state/piolet/alps/score"
    place.mkdir(parents=True)
    frames = [
        journals.header(software={"kernel": "6.1", "driver": "580"}),
        *(journals.busy(0, at / 10, 0.5) for at in range(50)),
    ]
    journals.write(place / "112.0", *frames)
    journals.write(place / "112.1", journals.header(step="1", origin=journals.ORIGIN - 10**17))
    (place / "112.2").mkdir()
    journals.write(place / "112.3", journals.header(step="3", period="soon"))
    other = tmp_path / ".local/state/piolet/daint/score"
    other.mkdir(parents=True)
    journals.write(other / "112.0", *frames)
    found = view(sources, replace(RUN, start=journals.ORIGIN / 1e9, end=None, state="RUNNING"))
    assert found.scores, found.missing
    (score,) = found.scores
    assert (score.step, score.directory, score.software) == ("112.0", str(place / "112.0"), ("driver 580, kernel 6.1",))
    assert score.simulated == "scripted GPUs" and score.figures["saturation"]["low"] is not None
    for text in ("112.2 holds no samples", "112.3 is no data set that can be read"):
        assert any(text in one for one in found.missing)
    conforms(json.loads(json.dumps(found.as_dict())), job.schema())


def test_a_node_that_failed_is_named_by_accounting(sources: Sources, tmp_path: Path) -> None:
    """Where the central service does not know it yet."""
    rows = [f"n2|{int(START) + 9}|Unknown|DOWN*|PSU failed|root", f"n9|{int(START) + 9}|Unknown|DOWN|x|root"]
    sacctmgr = tmp_path / "sacctmgr"
    sacctmgr.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(rows) + "\nE\n")
    sacctmgr.chmod(0o755)
    found = view(replace(sources, sacctmgr=str(sacctmgr)), replace(RUN, state="NODE_FAIL"))
    assert found.why[0].sentence == "n2 failed while it ran: PSU failed" and "--exclude=n2" in found.why[0].advice
    assert (
        view(replace(sources, sacctmgr="/nonexistent"), replace(RUN, state="NODE_FAIL")).why[0].kind == "node_failure"
    )


def test_marks_of_an_earlier_job_of_that_number_are_not_this_ones(sources: Sources, tmp_path: Path) -> None:
    where = str(tmp_path / ".local/state/piolet/alps/marks/112")
    said = [marks.Said("loss", value, START + at, marks.COMMAND) for at, value in ((5, 0.5), (-(10**6), 9.0))]
    marks.add(where, "n1", [*said, marks.Said("step", 3.0, None, marks.OUTPUT)])
    assert [(one.name, one.count, one.most) for one in view(sources).marks] == [("loss", 1, 0.5), ("step", 1, 3.0)]


def test_findings_of_the_kept_data_of_its_steps(sources: Sources) -> None:
    """As the central service has them; a step of an earlier job of that number says nothing of this one."""

    def fetch(number: int, step: str, target: Path) -> list[Path]:
        assert (number, step) == (112, "")
        made = []
        for at, start in enumerate((START + 1, START - 10**6)):
            directory = target / str(at)
            directory.mkdir()
            writing.write_meta(directory, {"version": 1, "job": "112", "step": "0", "start": int(start * 1e9)})
            one: dict[str, list[Any]] = {name: [None] for name in layout.schema("findings").names}
            said = {"detector": "straggler", "version": 1, "node": "n2", "confidence": 0.995, "text": f"slow {at}"}
            for name, value in said.items():
                one[name] = [value]
            writing.write_table(directory, "findings", one)
            made.append(directory)
        return made

    found = view(replace(sources, steps=fetch))
    (finding,) = found.findings
    assert (finding.step, finding.detector, finding.node, finding.text) == ("112.0", "straggler 1", "n2", "slow 0")
    assert finding.start is None and [one.kind for one in found.why] == ["finding", "program"]

    def fails(number: int, step: str, target: Path) -> list[Path]:
        raise PioletError("the central service keeps no data of steps")

    assert "findings: the central service keeps no data of steps" in view(replace(sources, steps=fails)).missing


def test_what_a_batch_script_shares_with_a_step_is_said_once() -> None:
    """A mount of the node is in the data of both; a node of the step alone is another, and so is another time."""

    def found(step: str, node: str | None, start: float, subject: str = "/scratch") -> Finding:
        return Finding(f"7.{step}", "slow_file_system 2", node, subject, start, start + 30, 0.99, "slow", "wait")

    step, batch = found("0", None, 100.0), found("batch", None, 101.0)
    others = [found("0", None, 100.0, "/home"), found("batch", None, 500.0)]
    assert known.distinct([batch, step, *others]) == [step, others[0], others[1]]
    assert known.distinct([found("batch", "n1", 100.0), step]) == [step]
    apart = [found("0", "n1", 100.0), found("0", "n2", 100.0), found("1", "n3", 100.0)]
    assert known.distinct(apart) == apart


def test_a_step_that_is_not_there(sources: Sources) -> None:
    with pytest.raises(UsageError, match="has no step 5") as caught:
        view(sources, name="112.5")
    assert caught.value.hint == "there are: 0"


def test_nothing_but_text_reaches_a_terminal(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that users choose steer no terminal: what is printed goes through `printable`."""
    from piolet.cli.main import printable

    text = printable("\n".join(jobtext.whole(view(sources, replace(RUN, name="\x1b[31mx", command="\x07")))))
    assert "\x1b" not in text and "\x07" not in text


def test_history_and_tasks() -> None:
    lines = jobtext.history([RUN, replace(RUN, shown="113_1", number=113, run=1, state="RUNNING")], {112: "scored"})
    assert lines[1].startswith("113_1-r1") and lines[2].split()[:3] == ["112", "train", "FAILED"]
    assert lines[2].endswith("scored") and " 61 s " in lines[2] and " 8 " in lines[2]
    assert jobtext.tasks([RUN])[1].split()[0] == "112"


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ({"low": 0.5, "high": 0.5}, "50 %"),
        ({"low": 0.25, "high": 0.5}, "25 to 50 %"),
        ({"low": 0.5, "high": None}, "at least 50 %"),
        ({"low": None, "high": 0.5}, "at most 50 %"),
        ({"low": None, "high": None}, ""),
        ({}, ""),
    ],
)
def test_figures_keep_their_intervals(figure: dict[str, object], text: str) -> None:
    assert jobtext.interval(figure, 100.0, " %") == text
