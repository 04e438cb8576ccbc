"""Whose code came to a verdict: what is not known to be root's is a user's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.vet import node, origin
from piolet.vet.origin import Origins
from piolet.vet.runner import plan
from piolet.vet.runner.plan import Plan, Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose files are believed")
LIMITS = Task("limits", "limits", "piolet.vet.evals.limits:Limits", parameters={"min_nofile": 1})
SITE = """\
import os
from dataclasses import dataclass
from piolet.api import Context, Eval, Verdict

@dataclass(frozen=True)
class Shows(Eval):
    name = "shows"
    def check(self, context: Context) -> Verdict:
        return Verdict("pass", f"{os.environ} {'EVIL' in context.environ}")
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are looked for as in the daemon: not in the directory that pytest was started in."""
    monkeypatch.setattr("sys.path", [one for one in sys.path if "site-packages" in one or "/usr/" in one])


@pytest.fixture
def site() -> Iterator[Path]:
    """A site's directory with an eval."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "shows.py").write_text(SITE)
        yield Path(directory)


def of(*tasks: Task, site: str = "/etc/piolet/evals", cached: bool = False) -> list[tuple[str, str | None]]:
    origins = Origins(Plan("p", tasks), [site])
    return [origins.of(task, cached) for task in tasks]


def test_what_is_built_in() -> None:
    assert of(LIMITS) == [("built-in", "limits")]


def test_the_name_is_that_of_the_code() -> None:
    """`kind` in a plan is free text."""
    liar = dataclasses.replace(LIMITS, kind="gpu_health", target="piolet.vet.evals.random:Random")
    assert of(liar) == [("built-in", "random")]


@pytest.mark.parametrize(
    "changes",
    [
        {"requirements": (("numpy",),)},
        {"search": ("/home/alice",)},
        {"where": "environment"},
        {"baseline": "history"},
        {"target": "piolet.vet.evals.cuda_kernel:CudaKernel"},
        {"target": "piolet.vet.evals._team:Team"},
        {"target": "limits:Limits"},
        {"target": "os:system"},
        {"target": ""},
    ],
)
def test_what_is_a_users(changes: dict[str, Any]) -> None:
    assert of(dataclasses.replace(LIMITS, **changes)) == [("user", None)]


def test_what_was_kept_is_a_users() -> None:
    assert of(LIMITS, cached=True) == [("user", None)]


def test_one_class_of_a_users_makes_all_a_users() -> None:
    assert of(LIMITS, Task("own", "mine.Own", "mine:Own", search=("/home/alice",))) == [("user", None)] * 2


def test_one_name_for_two_is_no_name() -> None:
    """A record says by its name which it is of."""
    assert of(LIMITS, dataclasses.replace(LIMITS, target="piolet.vet.evals.random:Random")) == [("user", None)] * 2


@pytest.mark.parametrize("entry", ["", ".", "relative", "HOME"])
def test_a_path_that_is_not_roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.setattr("sys.path", [str(tmp_path) if entry == "HOME" else entry, *sys.path])
    assert of(LIMITS) == [("user", None)]


def test_a_sites_file(site: Path) -> None:
    path = site / "shows.py"
    task = Task("s", "shows", f"{path}:Shows")
    assert of(task, site=str(site)) == [("site", f"{path}:Shows")]
    assert of(task) == [("user", None)]
    assert of(dataclasses.replace(task, target=f"{site}/../{site.name}/shows.py:Shows"), site=str(site)) == [
        ("user", None)
    ]
    for mode, owner, above in ((0o666, 0, 0o755), (0o644, 65534, 0o755), (0o644, 0, 0o777)):
        path.chmod(mode)
        os.chown(path, owner, 0)
        site.chmod(above)
        assert of(task, site=str(site)) == [("user", None)]
        path.chmod(0o644)
        site.chmod(0o755)
        os.chown(path, 0, 0)
    path.rename(site / "real.py")
    path.symlink_to(site / "real.py")
    assert of(task, site=str(site)) == [("user", None)]


def spooled(what: Plan, site: str, environ: dict[str, str]) -> list[dict[str, Any]]:
    """Do the work in a child, and return what it gives the spool."""
    return spooled_raw(what.to_json(), site, environ)


def spooled_raw(data: bytes, site: str, environ: dict[str, str] | None = None) -> list[dict[str, Any]]:
    read, write = os.pipe()
    nothing = os.open(os.devnull, os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.environ.clear()
            os.environ.update(environ or {})
            node.work(
                data,
                nothing,
                {},
                write,
                [site],
                origin.closed_environment({"A": "root's", "NOTIFY_SOCKET": "x"}),
            )
        finally:
            os._exit(0)
    os.close(write)
    os.close(nothing)
    with open(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return [json.loads(text) for text in data.splitlines()]


def test_roots_code_sees_no_variable_of_the_users(site: Path, tmp_path: Path) -> None:
    """Programs and libraries are found by it; what the eval may know is in the context."""
    task = Task("s", "shows", f"{site}/shows.py:Shows")
    environ = {
        "EVIL": "1",
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "SLURMD_NODENAME": "node2",
        "SLURM_JOB_ID": "1",
    }
    (one,) = spooled(Plan("p", (task,)), str(site), environ)
    assert (
        one["said"]["reason"]
        == "environ({'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'LANG': 'C.UTF-8', 'A': \"root's\"}) True"
    )
    assert (one["origin"], one["kind"]) == ("site", task.target)
    assert set(one) == {"origin", "kind", "plan", "protocol", "release", "said"}
    assert one["release"] == "sha256:" + hashlib.sha256((site / "shows.py").read_bytes()).hexdigest()


def test_a_record_has_the_parameters_and_the_plan(tmp_path: Path) -> None:
    """Without them a pass says nothing."""
    what = Plan("p", (LIMITS,))
    (one,) = spooled(what, "/nowhere", {"HOME": str(tmp_path)})
    assert one["plan"] == plan.from_json(what.to_json()).digest() and one["said"]["parameters"] == {"min_nofile": 1}


def test_what_is_too_long_is_short(tmp_path: Path) -> None:
    wordy = Task("w", "naughty.Wordy", "naughty:Wordy", search=(str(Path(__file__).parent),))
    (one,) = spooled(Plan("p", (wordy,)), "/nowhere", {"HOME": str(tmp_path)})
    assert one["origin"] == "user" and one["release"] is None
    assert {"eval", "outcome", "parameters", "ran_on"} <= one["said"].keys()
    assert "(cut, " in json.dumps(one["said"], ensure_ascii=False) and len(json.dumps(one)) <= select.PIPE_BUF + 200


def test_a_vetting_that_cannot_be_done_is_spooled(tmp_path: Path) -> None:
    """Of a node whose /tmp is read-only there was no line at all."""
    (one,) = spooled_raw(b"{", str(tmp_path))
    assert one == {"refused": "the plan is malformed"}


def test_a_node_that_cannot_write_is_spooled() -> None:
    """Its /tmp is read-only, say: there was no line at all."""
    (one,) = spooled_raw(Plan("p", (LIMITS,)).to_json(), "/nowhere", {"HOME": "/nonexistent", "TMPDIR": "/proc"})
    assert one.keys() == {"refused"} and "/proc" in one["refused"], one
