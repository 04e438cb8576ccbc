"""The runner as one file: it needs nothing but an old Python."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from piolet.vet import bundle, protocol, records, yamltext
from piolet.vet.catalogue import catalogue

PROTOCOL = "evals:\n- {type: limits, where: environment}\n- type: env\n- {type: my.own.Eval, where: environment}\n"


def pythons() -> list[str]:
    """Return the Pythons of this machine that start; a version manager's stand-ins need not."""
    names = ("python3", *(f"python3.{minor}" for minor in range(8, 15)))
    found = sorted({path for name in names if (path := shutil.which(name))})
    return [
        path for path in found if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


def run(python: str, where: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    # -I: neither this checkout nor the user's packages can help it.
    command = [python, "-I", "-c", bundle.LOADER]
    environ = {**os.environ, "SLURMD_NODENAME": "n7"}
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False, cwd=where, env=environ)


def order() -> bytes:
    plan = protocol.build(yamltext.parse("p", PROTOCOL), catalogue())
    return bundle.message(json.dumps({"plan": json.loads(plan.to_json()), "token": "", "shared": ""}).encode())


@pytest.mark.parametrize("python", [sys.executable, *pythons()])
def test_it_runs_alone(python: str, tmp_path: Path) -> None:
    result = run(python, tmp_path, order())
    assert result.returncode == 0, result.stderr
    lines = [records.decode(line) for line in result.stdout.splitlines()]
    found = {line[1]["eval"]: line[1] for line in lines if line is not None and line[0] == "verdict"}
    assert found["limits"]["outcome"] == "pass"
    assert found["limits"]["node"] == "n7"
    assert "there is no module 'my'" in found["my.own.Eval"]["reason"]
    assert "env" not in found  # that one is the host's


@pytest.mark.parametrize(
    "data",
    [bundle.message(b"{"), bundle.message(b"[]"), bundle.message(b'{"plan": {}, "token": ""}'), b"9 9\nx"],
    ids=["half", "list", "empty", "cut short"],
)
def test_a_malformed_order_is_refused(data: bytes, tmp_path: Path) -> None:
    result = run(sys.executable, tmp_path, data)
    assert result.returncode == 1
    assert result.stderr.startswith(b"piolet: error: ")
    assert b"Traceback" not in result.stderr


def test_an_image_with_an_old_python_says_so() -> None:
    """Whatever starts reads the first lines; a Python of today stands in for one that is too old."""
    loader = bundle.LOADER.replace("(3, 8)", "(3, 99)")
    assert loader != bundle.LOADER
    done = subprocess.run([sys.executable, "-c", loader], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (1, b"piolet: error: the Python of the image is older than 3.8\n")


def test_everything_in_it_is_python_3_8() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        for name in archive.namelist():
            tree = ast.parse(archive.read(name), name, feature_version=(3, 8))
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
            assert not {one for one in imported if one.startswith("piolet.environment")}, name
            text = archive.read(name).decode()
            for newer in (
                ".removeprefix(",
                ".removesuffix(",
                "strict=",
                "slots=True",
                "kw_only=",
                "pidfd_open",
                "StrEnum",
            ):
                assert newer not in text, f"{name} uses {newer}"


def test_the_same_sources_give_the_same_bytes() -> None:
    assert bundle.build() == bundle.build()


def test_evals_import_the_contract_and_each_other_only() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        for name in archive.namelist():
            if not name.startswith("piolet/vet/evals/"):
                continue
            for node in ast.walk(ast.parse(archive.read(name))):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                if module and module.startswith("piolet"):
                    assert module == "piolet.api" or module.startswith("piolet.vet.evals"), f"{name}: {module}"
