"""pyslurm_ext against a real slurmctld: every function, what Slurm's own commands say of the same, and refusals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import Cluster
from tests.support.waiting import wait_until

PROGRAM = """\
import json, sys
import pyslurm_ext
slurm = pyslurm_ext.connect()
def plain(x):
    if isinstance(x, list): return [plain(y) for y in x]
    if hasattr(x, "_asdict"): return {k: plain(v) for k, v in x._asdict().items()}
    return sorted(x) if isinstance(x, frozenset) else x
try:
    print(json.dumps(plain(eval(sys.argv[1]))))
except pyslurm_ext.SlurmError as error:
    print(json.dumps({"error": error.message, "hint": error.hint, "code": error.code}))
"""


class Slurm:
    """pyslurm_ext in a process of its own, as a user of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.conf = cluster.layout.etc / "slurm.conf"

    def ask(self, expression: str, user: str = "alice", conf: Path | None = None, timeout: float = 30) -> Any:
        """Return what `expression` gives, or {'error': …}. No warning and no traceback may be seen."""
        python = cluster_python(self.cluster)
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        done = subprocess.run(
            [*become, "env", f"SLURM_CONF={conf or self.conf}", python, "-I", "-c", PROGRAM, expression],
            capture_output=True, text=True, timeout=timeout, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def cluster_python(cluster: Cluster) -> str:
    return str(cluster.layout.venv_bin / "python")


@pytest.fixture
def slurm(cluster: Cluster) -> Slurm:
    return Slurm(cluster)


@pytest.fixture
def job(cluster: Cluster) -> Iterator[int]:
    """A job of two nodes with a step in it."""
    room = cluster.room("alice")
    script = cluster.script("alice", "#!/bin/bash\nsrun --job-name=inner sleep 300\n")
    words = ("sbatch", "--parsable", "-N2", "-t", "7", "-J", "näme", "--comment=first", script)
    number = int(cluster.run("alice", *words, cwd=room).good())
    yield number
    cluster.run("alice", "scancel", str(number))
    cluster.wait_end(str(number))


def test_nodes(slurm: Slurm) -> None:
    found = slurm.ask("slurm.nodes()")
    assert [node["name"] for node in found] == ["node1", "node2", "node3", "node4"]
    for node in found:
        assert (node["cpus"], node["hostname"], node["reason"]) == (16, node["name"], None)
        assert node["boot_time"] > 1_500_000_000 and node["version"]
    assert slurm.ask("slurm.node('node3')")["name"] == "node3"


def test_partitions(slurm: Slurm) -> None:
    (found,) = slurm.ask("slurm.partitions()")
    assert found["state"] == "UP" and found["default"] is True
    assert (found["nodes"], found["num_nodes"]) == ("node[1-4]", 4)
    assert found["max_time"] is None


def test_a_job_and_its_steps(slurm: Slurm, job: int, cluster: Cluster) -> None:
    wait_until(lambda: len(slurm.ask(f"slurm.steps({job})")) == 2, what="the step")
    found = slurm.ask(f"slurm.job({job})")
    assert (found["id"], found["name"], found["state"], found["num_nodes"]) == (job, "näme", "RUNNING", 2)
    assert (found["time_limit"], found["comment"], found["reason"]) == (7, "first", "None")
    assert found["end_time"] - found["start_time"] == 7 * 60
    said = cluster.run("alice", "squeue", "-h", "-j", str(job), "-o", "%i|%j|%T|%U|%P|%N|%D|%C|%Q|%Z").good().strip()
    fields = ("id", "name", "state", "user_id", "partition", "nodes", "num_nodes", "num_cpus", "priority", "work_dir")
    assert "|".join(str(found[name]) for name in fields) == said
    steps = {step["step_id"]: step for step in slurm.ask("slurm.steps()") if step["job_id"] == job}
    assert set(steps) == {"batch", 0}
    assert (steps[0]["name"], steps[0]["nodes"], steps[0]["state"]) == ("inner", found["nodes"], "RUNNING")
    assert [one for one in slurm.ask("slurm.jobs()") if one["id"] == job] == [found]


def test_comment_and_requeue(slurm: Slurm, job: int) -> None:
    assert slurm.ask(f"slurm.set_comment({job}, 'what I think')") is None
    assert slurm.ask(f"slurm.job({job})")["comment"] == "what I think"
    refused = slurm.ask(f"slurm.set_comment({job}, 'no')", user="bob")
    assert "Invalid user id" in refused["error"] and "owner" in refused["hint"]
    wait_until(lambda: slurm.ask(f"slurm.job({job})")["state"] == "RUNNING", what="the job")
    assert slurm.ask(f"slurm.requeue({job}, hold=True)") is None
    wait_until(lambda: slurm.ask(f"slurm.job({job})")["restarts"] == 1, what="the second start")
    wait_until(lambda: slurm.ask(f"slurm.job({job})")["priority"] == 0, what="the hold")


def test_a_list_is_never_an_old_one(slurm: Slurm, job: int) -> None:
    """slurmctld counts in seconds: what changes right after a list is in the next one all the same."""
    comment = f"[one.comment for one in slurm.jobs() if one.id == {job}]"
    found = slurm.ask(f"[({comment}, slurm.set_comment({job}, f'c{{n}}'), {comment}) for n in range(100)]", timeout=60)
    assert [after for _, _, after in found] == [[f"c{number}"] for number in range(100)]
    assert [before for before, _, _ in found[1:]] == [[f"c{number}"] for number in range(99)]


def test_a_snapshot_is_all_lists(slurm: Slurm, job: int) -> None:
    wait_until(lambda: slurm.ask(f"slurm.job({job})")["state"] == "RUNNING", what="the job")
    lists = "[slurm.jobs(), slurm.nodes(), slurm.partitions()]"
    found, *expected = slurm.ask(f"[slurm.snapshot(), *{lists}]")
    assert list(found) == ["jobs", "nodes", "partitions"] and list(found.values()) == expected
    assert [one["name"] for one in found["jobs"] if one["id"] == job] == ["näme"]


def test_what_has_not_changed_is_not_sent_again(slurm: Slurm) -> None:
    """The answer is the same, and of the same moment; a caller may do with the list what it likes."""
    wait = "__import__('time').sleep(1.1)"
    moment = "slurm._answers[pyslurm_ext.Partition][0]"
    calls = f"[{wait}, {wait}, slurm.partitions().clear(), {moment}, {wait}, slurm.partitions(), {moment}]"
    *_, first, _, partitions, second = slurm.ask(calls)
    assert first == second and [one["name"] for one in partitions] == ["main"]


def test_drain_and_resume(slurm: Slurm) -> None:
    try:
        assert slurm.ask("slurm.drain(['node2', 'node3'], 'ECC errors')", user="root") is None
        for name in ("node2", "node3"):
            node = slurm.ask(f"slurm.node('{name}')")
            assert "DRAIN" in node["flags"] and (node["reason"], node["reason_user_id"]) == ("ECC errors", 0)
            assert node["reason_time"] > 1_500_000_000
        assert slurm.ask("slurm.node('node1')")["reason"] is None
    finally:
        assert slurm.ask("slurm.resume('node[2-3]')", user="root") is None
    assert "DRAIN" not in slurm.ask("slurm.node('node2')")["flags"]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("slurm.drain('node1', 'because')", "cannot drain node1: Invalid user id"),
        ("slurm.drain('node1', ' ')", "cannot drain without a reason"),
        ("slurm.drain([], 'because')", "no node is named"),
        ("slurm.resume('node1')", "cannot resume node1: "),
        ("slurm.node('nothing')", "cannot show node nothing: Slurm has no node of that name"),
        ("slurm.job(4000000)", "cannot show job 4000000: Invalid job id"),
        ("slurm.job(-1)", "-1 is no number of a job"),
        ("slurm.requeue(4000000)", "cannot requeue job 4000000: Invalid job id"),
        ("slurm.set_comment(4000000, 'x')", "cannot set the comment of job 4000000: Invalid job id"),
        ("slurm.set_comment(1, 'x\\0')", "NUL"),
        ("setattr(slurm, 'nodes', lambda: slurm.node('nothing')) or slurm.snapshot()", "cannot show node nothing"),
        ("slurm.expand('node[1-')", "is no list of hosts"),
    ],
)
def test_refusals(slurm: Slurm, expression: str, text: str) -> None:
    found = slurm.ask(expression)
    assert text in found["error"], found


def test_host_lists(slurm: Slurm) -> None:
    assert slurm.ask("slurm.expand('n[08-11,20],login')") == ["n08", "n09", "n10", "n11", "n20", "login"]
    assert slurm.ask("slurm.compress(['n3', 'n1', 'n2', 'n2', 'm'])") == "m,n[1-3]"
    assert slurm.ask("len(slurm.expand('n[1-20000]'))") == 20000


def test_without_slurm(slurm: Slurm, tmp_path: Path) -> None:
    """No slurm.conf, a broken one, and no slurmctld: an error each, where the library itself would end the process."""
    tmp_path.chmod(0o755)
    assert "there is no slurm.conf" in slurm.ask("slurm.nodes()", conf=tmp_path / "none", user="root")["error"]
    broken = tmp_path / "slurm.conf"
    broken.write_text("Bogus=1\n")
    assert "configuration cannot be read" in slurm.ask("slurm.nodes()", conf=broken, user="root")["error"]
    text = slurm.conf.read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.lower().startswith(("slurmctldport", "messagetimeout"))]
    broken.write_text("\n".join([*lines, "SlurmctldPort=1", "MessageTimeout=2\n"]))
    found = slurm.ask("slurm.nodes()", conf=broken, user="root", timeout=90)
    assert "cannot list nodes: Unable to contact slurm controller" in found["error"] and "slurmctld" in found["hint"]


def test_a_program_that_ignores_its_children(slurm: Slurm) -> None:
    """A child tries slurm.conf first; the program that asks need not be able to wait for it."""
    ignored = "__import__('signal').signal(__import__('signal').SIGCHLD, __import__('signal').SIG_IGN)"
    assert len(slurm.ask(f"({ignored}, slurm.nodes())[1]")) == 4


def test_ten_thousand_calls_take_no_memory(slurm: Slurm) -> None:
    """Of every kind, good and refused; the resident memory of the last half does not grow."""
    code = (
        "import os, pyslurm_ext; s = pyslurm_ext.connect()\n"
        "def refused(f, *a):\n"
        "    try: f(*a)\n"
        "    except pyslurm_ext.SlurmError: return\n"
        "    raise SystemExit('not refused')\n"
        "def some(n):\n"
        "    for _ in range(n):\n"
        "        s.nodes(), s.partitions(), s.jobs(), s.steps(), refused(s.node, 'nothing'), refused(s.job, 4000000)\n"
        "        s._answers.clear(), s.snapshot()\n"
        "        for _ in range(4): s.expand('n[1-100]'), s.compress(['n1', 'n2'])\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "first = some(340)\nsecond = some(355)\nprint(second - first)\n"
    )
    done = subprocess.run(
        ["env", f"SLURM_CONF={slurm.conf}", cluster_python(slurm.cluster), "-I", "-c", code],
        capture_output=True, text=True, timeout=120, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # One leaked answer of four nodes is 2 kB a call: thousands of calls would be megabytes.
    assert int(done.stdout) < 512 * 1024
