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
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.vet import bundle
from piolet.vet.runner import records

from tests.support.protocols import plan_of

PROTOCOL = "evals:\n- {type: limits, where: environment}\n- type: env\n- {type: my.own.Eval, where: environment}\n"


def candidates() -> dict[str, list[str]]:
    """Return where a Python of each version may be that this machine has, and 3.8, by its name.

    What is on PATH may be a version manager's stand-in, and start nothing; then the Python is where pyenv has it.
    """
    manager = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = {"this": [sys.executable]}
    for minor in range(8, 15):
        name = f"python3.{minor}"
        places = [which] if (which := shutil.which(name)) else []
        places += sorted(map(str, manager.glob(f"versions/3.{minor}.*/bin/{name}")))
        if places or minor == 8:
            found[name] = places
    return found


CANDIDATES = candidates()


@pytest.fixture(scope="module", params=CANDIDATES)
def python(request: pytest.FixtureRequest) -> str:
    """A Python of each version; one that does not start, and 3.8, are skipped by name."""
    name, places = request.param, CANDIDATES[request.param]
    if works := next((path for path in places if starts(path)), None):
        return works
    pytest.skip(f"{places[0]} does not start" if places else f"{name} is not installed")


def starts(path: str) -> bool:
    return subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


def run(python: str, where: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    # -I: neither this checkout nor the user's packages can help it.
    command = [python, "-I", "-c", bundle.LOADER]
    environ = {**os.environ, "SLURMD_NODENAME": "n7"}
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False, cwd=where, env=environ)


def order() -> bytes:
    plan = plan_of(PROTOCOL)
    return bundle.message(json.dumps({"plan": json.loads(plan.to_json()), "token": "", "shared": ""}).encode())


def test_it_runs_alone(python: str, tmp_path: Path) -> None:
    result = run(python, tmp_path, order())
    assert result.returncode == 0, result.stderr
    lines = [records.decode(line) for line in result.stdout.splitlines()]
    found = {line[1]["eval"]: line[1] for line in lines if line is not None and line[0] == "verdict"}
    assert found["limits"]["outcome"] == "pass"
    assert found["limits"]["node"] == "n7"
    assert "there is no module 'my'" in found["my.own.Eval"]["reason"]
    assert "env" not in found  # that one is the host's


def test_all_of_it_can_be_imported(python: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(bundle.build())
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        names = [name[:-3].replace("/__init__", "").replace("/", ".") for name in archive.namelist()]
    code = f"import sys, importlib; sys.path.insert(0, 'bundle.zip'); [importlib.import_module(n) for n in {names}]"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def evaluated(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that Python evaluates: no annotations, and nothing that is for type checkers."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        if isinstance(tree, ast.If) and getattr(tree.test, "id", "") == "TYPE_CHECKING" and name == "body":
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield node
                yield from evaluated(node)


def test_nothing_evaluates_a_type_that_python_3_8_cannot() -> None:
    """What can be subscripted is a matter of the interpreter, not of its grammar."""
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        for name in archive.namelist():
            tree = ast.parse(archive.read(name), name)
            types = {"dict", "frozenset", "list", "set", "tuple", "type"}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == "collections.abc":
                    types |= {alias.asname or alias.name for alias in node.names}
            for node in evaluated(tree):
                if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
                    assert node.value.id not in types, f"{name}:{node.lineno}: {ast.unparse(node)}"


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
