"""`piolet vet`: check, list, run, why; exit status and text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.base.errors import VetError
from piolet.cli import main as cli
from piolet.vet.catalogue import VETNODE, catalogue

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "vet"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name in ("SLURM_JOB_ID", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(work: Path, text: str) -> str:
    (work / "p.yaml").write_text(text)
    return "p.yaml"


def test_check(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vet", "check", write(work, "evals:\n- type: gpu\n- type: my.own.Eval\n")]) == 0
    assert capsys.readouterr().out == "p.yaml is valid: 2 evals, of them not known here: my.own.Eval\n"


def test_check_looks_for_classes_of_ones_own(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the working directory and on PYTHONPATH; it imports none."""
    (work / "mine.py").write_text("raise SystemExit('imported')\nclass Good: pass\n")
    (work / "lib/site_checks").mkdir(parents=True)
    (work / "lib/site_checks/disks.py").write_text("from others import Disk\n")
    monkeypatch.setenv("PYTHONPATH", str(work / "lib"))
    kinds = ("mine.Good", "site_checks.disks.Disk", "site_checks.nets.Net", "theirs.Good")
    assert cli.main(["vet", "check", write(work, "evals:\n" + "".join(f"- type: {kind}\n" for kind in kinds))]) == 0
    out = capsys.readouterr().out
    assert out == "p.yaml is valid: 4 evals, of them not known here: site_checks.nets.Net, theirs.Good\n"


def test_check_of_a_mistake(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vet", "check", write(work, "evals:\n- type: gpu\n  max_tmp: 3\n")]) == 1
    assert capsys.readouterr().err == (
        "piolet: error: p.yaml:3:3: unknown key 'max_tmp' in the eval 'gpu'\n"
        "    max_tmp: 3\n    ^^^^^^^\nhint: did you mean 'max_temp'?\n"
    )


def test_list(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vet", "list"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in catalogue().entries)
    for name in [*catalogue().entries, *VETNODE]:
        assert cli.main(["vet", "list", name]) == 0
    assert cli.main(["vet", "list", "nothing"]) == 2
    assert cli.main(["vet", "list", "gpus"]) == 2
    assert capsys.readouterr().err.endswith("hint: did you mean 'gpu'?\n")


def test_a_working_directory_that_is_gone(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work / write(work, "name: x\nevals:\n- {type: limits, min_nofile: 1}\n")
    monkeypatch.chdir(work)
    (work / "gone").mkdir()
    os.chdir(work / "gone")
    (work / "gone").rmdir()
    assert cli.main(["vet", "run", str(path)]) == 0, capsys.readouterr()


def test_signals_that_come_together(work: Path) -> None:
    code = """
import os, signal
from piolet.cli import vet
both = (signal.SIGINT, signal.SIGTERM)
for number in both:
    signal.signal(number, vet._interrupt)
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
except KeyboardInterrupt:
    print("interrupted")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (run.stdout, run.stderr) == (b"interrupted\n", b"")


def test_every_eval_describes_itself() -> None:
    for entry in catalogue().entries.values():
        kind = entry.kind
        assert kind.name == entry.name
        assert kind.text and kind.how and kind.source, entry.name
        assert kind.better in ("", "higher", "lower", "same")
        assert kind.scope in ("node", "pair", "group")


def test_run_good_and_bad(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vet", "run", write(work, "name: x\nevals:\n- {type: limits, min_nofile: 1}\n")]) == 0
    assert "1 of 1 node good" in capsys.readouterr().out
    bad = write(work, "evals:\n- type: limits\n- {type: env, expected: {NOT_THERE: null}}\n")
    assert cli.main(["vet", "run", bad, "--report", "r.json"]) == 3
    out = capsys.readouterr().out
    assert "0 of 1 node good" in out and "NOT_THERE is not set" in out
    node = next(iter(json.loads((work / "r.json").read_text())["nodes"]))
    assert cli.main(["vet", "why", node, "--report", "r.json"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("fail         env: NOT_THERE is not set [")


def test_run_judges_nothing_that_needs_an_environment_or_another_node(work: Path) -> None:
    text = "evals:\n- {type: limits, min_nofile: 1}\n- {name: inside, type: limits, where: environment}\n"
    text += "- {type: network_pair}\n- {type: nccl_bandwidth}\n"
    assert cli.main(["vet", "run", write(work, text), "--report", "r.json"]) == 3
    found = {row["eval"]: row for row in json.loads((work / "r.json").read_text())["records"]}
    assert found["limits"]["outcome"] == "pass"
    assert {row["outcome"] for name, row in found.items() if name != "limits"} == {"inconclusive"}
    assert found["inside"]["reason"] == "there is an environment in steps only (srun --environment)"
    assert "no other" in found["network_pair"]["reason"] and "no other" in found["nccl_bandwidth"]["reason"]


def test_why_without_a_result(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vet", "why", "n1"]) == 1
    assert "no vet-*.json" in capsys.readouterr().err
    cli.main(["vet", "run", write(work, "evals:\n- type: limits\n"), "--report", "vet-1.json"])
    assert cli.main(["vet", "why", "nobody"]) == 1
    assert "the node 'nobody' is not in vet-1.json" in capsys.readouterr().err


def test_in_a_job_there_is_a_result_file(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert cli.main(["vet", "run", write(work, "evals:\n- type: limits\n")]) == 0
    (kept,) = (work / "home/.local/state/piolet/cluster/vet").iterdir()
    assert kept.name == "vet-77.json" and json.loads(kept.read_text())["job"] == "77"
    assert not list(work.glob("vet-*"))
    assert cli.main(["vet", "why", "nobody"]) == 1
    assert f"the node 'nobody' is not in {kept}" in capsys.readouterr().err
    monkeypatch.delenv("HOME")
    assert cli.main(["vet", "run", write(work, "evals:\n- type: limits\n")]) == 0
    assert (work / "vet-77.json").exists()


def test_the_cache_is_used_and_can_be_passed_by(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(work, "evals:\n- {type: limits, cache: 1h}\n")
    cli.main(["vet", "run", name])
    assert "from the cache" not in capsys.readouterr().out
    cli.main(["vet", "run", name])
    assert "1 of 1 results from the cache" in capsys.readouterr().out
    cli.main(["vet", "run", name, "--no-cache"])
    assert "from the cache" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ml.yaml", "node.yaml"])
def test_the_examples_are_valid(name: str) -> None:
    assert cli.main(["vet", "check", str(EXAMPLES / name)]) == 0


def test_a_sites_eval(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "site_eval.py", tmp_path)
    entry = catalogue([str(tmp_path)]).find("load_average")
    assert entry is not None and entry.kind.text == "the load of the last minute"
    assert catalogue([str(tmp_path / "none")]).entries == catalogue().entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_there", "there is no module 'nothing_there'"),
        ("x = 1", "must define one class"),
        ("from piolet.api import Eval\nclass A(Eval):\n    name = 'gpu'\n", "which there is already"),
        ("from piolet.api import Eval\nclass A(Eval):\n    pass\n", "must define one class"),
        ("def f(:", "invalid syntax"),
    ],
)
def test_a_sites_file_that_is_no_eval_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(VetError, match=message):
        catalogue([str(tmp_path)])
