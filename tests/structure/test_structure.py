"""What the parts may know of each other, and how large they may grow: the rules of the architecture, held by tests."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "daemons" / "piolet"
PYTHON_LINES_MAX = 400
C_LINES_MAX = 1360


def python_files(place: Path = PACKAGE) -> list[Path]:
    """Return every Python file of the package, or below another place, that a person wrote."""
    return sorted(path for path in place.rglob("*.py") if path.name not in ("_wire.py", "_munge.py"))


def imports(path: Path, text: str | None = None) -> set[str]:
    """Return the modules that a file names in its import statements, wherever they stand; relative ones in full."""
    found: set[str] = set()
    package = path.relative_to(PACKAGE.parent).parent.parts if path.is_relative_to(PACKAGE) else ()
    for node in ast.walk(ast.parse(path.read_text("utf-8") if text is None else text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def loaded(*modules: str) -> set[str]:
    """Return what a fresh interpreter has loaded after importing `modules`."""
    code = f"import sys; before = set(sys.modules); import {', '.join(modules)}; print(*(set(sys.modules) - before))"
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(done.stdout.split())


def test_the_monitor_stays_small() -> None:
    """Root's process imports the standard library and what the contracts leave: no parser of what users write."""
    modules = loaded("piolet.node.root.monitor")
    foreign = {name for name in modules if name.partition(".")[0] not in (*sys.stdlib_module_names, "piolet")}
    assert not foreign
    rooms = {".".join(name.split(".")[:2]) for name in modules if name.startswith("piolet.")}
    assert rooms == {f"piolet.{room}" for room in ("base", "container", "node", "steps", "system", "transport")}
    assert not modules & {"tomllib", "yaml", "xml", "sqlite3", "ssl", "http", "asyncio", "piolet.node.server"}


@pytest.mark.parametrize("module", ["expand", "edf", "layer", "mounts", "definition"])
def test_pure_modules_do_no_io(module: str) -> None:
    """What decides looks at nothing: no files, no processes, no environment."""
    path = PACKAGE / "environment" / f"{module}.py"
    forbidden = {"os", "subprocess", "socket", "pathlib", "shutil", "tempfile"}
    named = imports(path)
    assert not {name.partition(".")[0] for name in named} & (forbidden - _allowed(path)), named
    calls = {
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"open", "print", "input"}


def _allowed(path: Path) -> set[str]:
    """Return {"os"} if a file takes nothing of os but os.path's pure functions."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            used.add(node.attr)
    return {"os"} if used <= {"path", "fsencode", "fsdecode"} else set()


def test_starting_a_step_imports_little() -> None:
    """What srun waits for does not load what only reports and pulls need."""
    submission = ("piolet.submission.cache", "piolet.submission.record")
    modules = loaded("piolet.cli.main", "piolet.cli.env", "piolet.environment.render", *submission)
    heavy = {"numpy", "pyarrow", "yaml", "asyncio", "ssl", "http.client", "cffi", "pycparser", "rich", "matplotlib"}
    assert not modules & heavy


@pytest.mark.parametrize("name", ["daemons", "pyslurm_ext", "spank", "tests", "tools"])
def test_python_files_are_short(name: str) -> None:
    """A file has one job; a long one has two. That of tests, too."""
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in python_files(ROOT / name)}
    assert lines
    assert not {file: count for file, count in lines.items() if count > PYTHON_LINES_MAX}


def test_every_module_says_what_it_does() -> None:
    """A module opens with a docstring."""
    assert not [str(p) for p in python_files() if not ast.get_docstring(ast.parse(p.read_text()))]


def test_the_rooms_import_downwards() -> None:
    """The contracts in pyproject.toml hold, and leave nothing out."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert "ignore_imports" not in text
    listed = set(
        re.findall(r"piolet\.(\w+)", text[text.index("layers = [") : text.index("]", text.index("layers = ["))])
    )
    assert listed == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "daemons"}
    )
    assert done.returncode == 0, done.stdout


# Imports of ours inside functions: files that may have them, and why.
LATE = {
    "cli/": "srun waits for the command: a verb loads what it needs",
    "config/schema.py": "only an error needs it",
    "environment/pinned.py": "who starts a step asks Slurm nothing, and waits for what is loaded",
    "hooks/facts.py": "only a node with a specification in YAML loads what reads it",
    "images/client.py": "whose image the service has needs no store of their own",
    "images/credentials.py": "who has no credential helper loads nothing to run programs",
    "images/pull.py": "few images are fetched without skopeo, and what does that takes long to load",
    "images/settings.py": "who sets nothing loads nothing",
    "samples/settings.py": "who sets nothing loads nothing",
    "node/main.py": "each of pioletd's processes loads its own, as the account that it is",
    "node/server/observer.py": "a site without Prometheus loads none of it",
    "observe/settings.py": "who sets nothing loads nothing",
    "node/root/keeper.py": "each of pioletd's processes loads its own, as the account that it is",
    "observe/known.py": "who asks why a job failed loads nothing that reads samples",
    "samples/writer.py": "the keeper's process is to stay small: only a writer loads what writes Parquet",
}


def test_imports_in_functions_are_for_the_start_alone() -> None:
    """None is there to get around the contracts; each file that has one is listed above, with its reason."""
    late = set()
    for path in python_files():
        tree = ast.parse(path.read_text("utf-8"))
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        inner = [node for function in functions for node in ast.walk(function)]
        names = {node.module or "" for node in inner if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in inner if isinstance(node, ast.Import) for alias in node.names}
        if any(name.partition(".")[0] == "piolet" for name in names):
            late.add(str(path.relative_to(PACKAGE)))
    unlisted = {name for name in late if not name.startswith(tuple(LATE))}
    assert not unlisted
    assert not [name for name in LATE if not any(one.startswith(name) for one in late)], "listed, and not there"


def test_only_main_prints() -> None:
    """Libraries raise; the command line and the daemons' mains print."""
    mains = {"cli", "main.py", "service.py", "__main__.py"}
    for path in python_files():
        if mains & {path.name, path.parent.name}:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_the_shims_stay_thin() -> None:
    """All C of ours in Slurm's processes, and in programs of their own, in lines of code.

    Comments and blank lines are free, so that nobody saves on them.
    """
    programs = {"entry.c", "vet_task.c"}
    lines = {True: 0, False: 0}
    for path in (ROOT / "spank").glob("*.c"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        lines[path.name in programs] += sum(1 for line in code.splitlines() if line.strip())
    assert lines[False] <= C_LINES_MAX
    assert lines[True] <= 215


def test_the_shims_know_no_python_and_parse_no_text() -> None:
    """No interpreter, no fork in slurmstepd (command.c runs in srun), no RPC, no text format."""
    for path in (ROOT / "spank").glob("*.[ch]"):
        text = path.read_text()
        assert "Python.h" not in text
        assert "slurm_load" not in text
        if path.name != "command.c":
            assert "fork(" not in text and "system(" not in text and "popen(" not in text, path
    for path in (ROOT / "spank").glob("*.c"):
        assert "json" not in path.read_text().lower().replace("canonical json", ""), path


def test_wire_h_is_one_definition() -> None:
    """cffi reads it as it is: no preprocessor beyond plain numbers."""
    text = (ROOT / "spank" / "wire.h").read_text()
    assert "#include" not in text and "#if" not in text and "__attribute__" not in text
    assert "struct piolet_start {" not in "".join(p.read_text() for p in python_files())


def test_the_plugins_export_hooks_only(tmp_path: Path) -> None:
    """Nothing of ours collides with a symbol of Slurm, and nothing of Python is needed."""
    build = [sys.executable, str(ROOT / "spank" / "build_shims.py"), "--output", str(tmp_path)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    for plugin in tmp_path.glob("*.so"):
        exported = _symbols(plugin, "--defined-only")
        assert exported and all(name.startswith(("slurm_spank_", "plugin_", "spank_plugin_")) for name in exported)
        assert not exported & {"slurm_spank_job_prolog", "slurm_spank_job_epilog"}, "each costs every job 16 ms"
        assert not [name for name in _symbols(plugin, "--undefined-only") if name.startswith(("Py", "_Py"))]


def _symbols(plugin: Path, which: str) -> set[str]:
    done = subprocess.run(["nm", "-D", which, str(plugin)], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    "room", ["vet/evals", "samples/collectors", "hooks/known", "observe/detectors", "observe/sources"]
)
def test_evals_collectors_and_hooks_know_the_contract_only(room: str) -> None:
    """An eval, a collector, a hook or a detector is one file that imports nothing of ours but piolet.api."""
    files = [path for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"]
    assert len(files) > 3
    for path in files:
        ours = {name for name in imports(path) if name.partition(".")[0] == "piolet"}
        # What several of them share stands beside them in a module with an underscore, under the same rule.
        private = "piolet." + room.replace("/", ".")
        # GPM's figures come by way of NVML: that collector is the other one with more.
        allowed = ("piolet.api", f"{private}._", "piolet.samples.collectors.nvml")
        assert all(name in ("piolet", private) or name.startswith(allowed) for name in ours), (path, ours)


def test_relative_imports_are_seen() -> None:
    """A file that reaches out of its room by dots is found as one that names it."""
    path = PACKAGE / "vet/evals/there_is_none.py"
    assert imports(path, "from ..runner import plan") == {"piolet.vet.runner", "piolet.vet.runner.plan"}
    assert imports(path, "from . import _files") == {"piolet.vet.evals", "piolet.vet.evals._files"}


def test_pyslurm_ext_knows_nothing_of_piolet() -> None:
    """It is of use to others as it is."""
    sources = list((ROOT / "pyslurm_ext").rglob("*.py"))
    assert len(sources) >= 5
    assert not [path for path in sources if any(name.partition(".")[0] == "piolet" for name in imports(path))]


def test_no_document_has_a_gap() -> None:
    """A word in capitals that stands alone on a line is a place where something was to be put."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 10
    gap = re.compile(r"^(?!EOF$)[A-Z]+$", re.MULTILINE)
    assert not [(path.name, found) for path in documents for found in gap.findall(path.read_text("utf-8"))]


def test_nothing_names_this_machine() -> None:
    """No path of the place where it was written, in any tracked file."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: an unpacked archive has no list of tracked files")
    for name in tracked:
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert b"/wo" + b"rk/main" not in data, name
