"""Every Python that Piolet starts: what is in the working directory and the user's variables is not its business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.samples import local
from piolet.vet import bundle, requirements, step
from piolet.vet.runner import records
from piolet.vet.step import Launch

from tests.support.protocols import plan_of
from tests.support.wheel import wheel

# Modules that the programs import, of which some are found before others.
NAMES = (
    "abc", "argparse", "ast", "base64", "bisect", "collections", "contextlib", "ctypes", "dataclasses", "encodings",
    "enum", "hashlib", "heapq", "importlib", "io", "json", "numpy", "os", "pip", "piolet", "random", "re", "select",
    "selectors", "shutil", "signal", "site", "sitecustomize", "socket", "ssl", "stat", "string", "struct",
    "subprocess", "tempfile", "threading", "time", "tokenize", "typing", "usercustomize", "venv", "warnings",
    "zipfile", "zlib",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory full of modules that say that they were executed, and break whoever imports them."""
    place = tmp_path / "hostile"
    place.mkdir()
    told = str(tmp_path / "executed")
    code = f"import posix\nposix.close(posix.open({told!r}, posix.O_CREAT | posix.O_WRONLY))\nraise SystemExit(77)\n"
    for name in NAMES:
        (place / f"{name}.py").write_text(code)
    return place


def variables(hostile: Path, home: bool = True) -> dict[str, str]:
    """Return the environment of a user who has all that against them."""
    own = {"PYTHONPATH": f"{hostile}::.", "PYTHONSTARTUP": str(hostile / "site.py"), "PYTHONINSPECT": "1",
           "PYTHONUSERBASE": str(hostile), "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PIP_TARGET": "/nowhere",
           "PIP_REQUIRE_VIRTUALENV": "1", "PIP_PREFIX": "/nowhere"}  # fmt: skip
    return {**os.environ, **own, **({"PYTHONHOME": "/nowhere"} if home else {})}


def assert_not_executed(hostile: Path) -> None:
    assert not (hostile.parent / "executed").exists()


def test_the_modules_are_hostile(hostile: Path) -> None:
    """Else the other tests show nothing."""
    done = subprocess.run([sys.executable, "-c", "import heapq"], cwd=hostile, capture_output=True, check=False)
    assert done.returncode == 77 and (hostile.parent / "executed").exists()


def test_the_loader_in_an_image(hostile: Path) -> None:
    """With the words that the vet step has."""
    text = "evals:\n- {type: limits, where: environment}\n- {type: heapq.Mine, where: environment}\n"
    what = plan_of(text, [str(hostile)])
    words = Launch("srun", 1, "", "", ()).words(1, what, "environment")
    start = words.index("python3")
    order = json.dumps({"plan": json.loads(what.to_json()), "token": "", "shared": ""}).encode()
    done = subprocess.run(
        [sys.executable, *words[start + 1 :]], input=bundle.message(order), cwd=hostile, env=variables(hostile),
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = [records.decode(line) for line in done.stdout.splitlines()]
    found = {line[1]["eval"]: line[1] for line in lines if line is not None and line[0] == "verdict"}
    assert found["limits"]["outcome"] == "pass", done.stderr
    # The standard library's is found first.
    assert found["heapq.Mine"]["reason"] == "heapq has no class 'Mine'"
    assert_not_executed(hostile)


def test_an_evals_own_modules_are_found(hostile: Path, tmp_path: Path) -> None:
    """In the directories of the plan, and on PYTHONPATH, as images need it that set it."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "helper.py").write_text("NAME = 'found'\n")
    (hostile / "mine.py").write_text(
        "import heapq, helper\nfrom piolet.api import Eval, Verdict\nclass Mine(Eval):\n    name = 'mine'\n"
        "    def check(self, context):\n        return Verdict('pass', helper.NAME)\n"
    )
    what = plan_of("evals:\n- {type: mine.Mine, where: environment}\n", [str(hostile)])
    order = json.dumps({"plan": json.loads(what.to_json()), "token": "", "shared": ""}).encode()
    done = subprocess.run(
        [sys.executable, "-I", "-c", bundle.LOADER], input=bundle.message(order), cwd=hostile,
        env={**variables(hostile), "PYTHONPATH": str(tmp_path / "more")}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = [records.decode(line) for line in done.stdout.splitlines()]
    assert [line[1]["reason"] for line in lines if line is not None and line[0] == "verdict"] == ["found"], done.stderr
    assert_not_executed(hostile)


def test_installing_requirements(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "wheels", "piolettestpkg")
    for name, value in variables(hostile).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(hostile)
    wanted = (("piolettestpkg", "--no-index", "--find-links", str(tmp_path / "wheels")),)
    (place,) = requirements.resolve(str(tmp_path / "cache"), wanted, "", 60.0)
    assert (Path(place) / "piolettestpkg.py").exists()
    assert_not_executed(hostile)


def test_a_requirement_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs elsewhere."""
    wheel(tmp_path / "wheels", "piolettestpkg")
    monkeypatch.chdir(tmp_path)
    wanted = (("./wheels/piolettestpkg-1.0-py3-none-any.whl", "--no-index"),)
    (place,) = requirements.resolve(str(tmp_path / "cache"), wanted, "", 60.0)
    assert (Path(place) / "piolettestpkg.py").exists()


def test_the_sampler_of_a_command(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`piolet score run`: it samples, and the command has its directory and its variables."""
    for name, value in variables(hostile).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(hostile)
    command = ["sh", "-c", f"test $PYTHONHOME = /nowhere && test $(pwd) = {hostile} && sleep 1"]
    assert local.run(command, Path("data"), 0.1, "host", None, "", 1_000_000, lambda: lambda _: b"") == 0
    assert [path.suffix for path in (hostile / "data").iterdir()]
    assert_not_executed(hostile)


@pytest.mark.parametrize("program", ["piolet", "pioletd", "piolet-imaged"])
def test_the_programs_themselves(hostile: Path, program: str) -> None:
    """srun starts `piolet` in the user's directory, with the user's variables."""
    path = Path(sys.executable).parent / program
    done = subprocess.run(
        [path, "--help"],
        cwd=hostile,
        env=variables(hostile),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert_not_executed(hostile)


@pytest.mark.parametrize(("where", "marked"), [("environment", True), ("host", False)])
def test_a_step_in_the_environment_says_that_it_is_a_vetting(tmp_path: Path, where: str, marked: bool) -> None:
    """What a definition saves at a step's end is not what a vetting leaves (container/around.py)."""
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\nenv >{tmp_path}/seen\n")
    srun.chmod(0o755)
    plan = plan_of(f"name: p\nevals:\n- {{type: env, where: {where}}}\n")
    launch = Launch(str(srun), 7, "task", "socket", ())
    step.run(plan, ["node1"], launch, {"PATH": "/usr/bin:/bin"})
    assert ("SLURM_PIOLET_VETTING=1" in (tmp_path / "seen").read_text().splitlines()) == marked
