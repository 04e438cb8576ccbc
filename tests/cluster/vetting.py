"""Vettings on the cluster, whose nodes have faults: what they print, and whom they leave out."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tools.cluster.layout import node_names

SLEEPER = """\
import os
import re
import time
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Sleeper(Eval):
    name = "sleeper"
    text = "waits for a file"
    timeout_s = 30.0
    path: str = parameter("", text="the file")

    def check(self, context: Context) -> Verdict:
        open(self.path + "." + context.node, "w").write(str(os.getpid()))
        while not os.path.exists(self.path) and context.remaining() > 0.2:
            time.sleep(0.02)
        return Verdict("pass")
"""


def vetted(cluster: Cluster, room: Path, protocol: str, count: int = 3, *more: str, option: str = "") -> str:
    """Run three of four nodes' worth of `hostname` after a vetting in a job of four; return all that was printed."""
    cluster.write("alice", room / "p.yaml", protocol)
    tasks = "" if "--ntasks" in option else f"-n{count}"
    # The result in the working directory, where a test finds it.
    script = f"srun -N{count} {tasks} --vet=p.yaml,report=vet-$SLURM_JOB_ID.json{option} hostname\necho status $?\n"
    return cluster.sbatch("alice", script, "-N4", *more, cwd=room, timeout=120)


def left_out(out: str) -> list[str]:
    """Return the lists of nodes that the screen says to leave out: one for each vetting, where there are any."""
    return re.findall(r"^left out: --exclude=(\S+)$", out, re.MULTILINE)


def wrong_with(out: str, nodes: str) -> list[str]:
    """Return the lines on what is wrong with these nodes together."""
    return [one for one in out.splitlines() if re.match(rf"(bad|not judged) \([\w' ]+\): {re.escape(nodes)}: ", one)]


def assert_left_out(out: str, node: str, text: str) -> None:
    """Assert that this node was named, with that reason, no other was, and that the application ran on the others."""
    assert left_out(out) == [node] and any(text in line for line in wrong_with(out, node)), out
    ran = sorted(line for line in out.splitlines() if line in node_names(4))
    assert ran == [name for name in node_names(4) if name != node] and "status 0" in out, out


def everything_on(faults: Faults, node: str) -> list[int]:
    """Return the processes of a node: it is a UTS namespace of its own."""
    own = os.readlink(f"{faults.root(node).parent}/ns/uts")
    found = []
    for pid in faults.members():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/uts") == own:
                found.append(pid)
    return found


def eval_pids(room: Path) -> dict[str, int]:
    """Return the processes of the sleeping eval, by node."""
    found = {path.name.rpartition(".")[2]: path.read_text("ascii") for path in room.glob("go.node*")}
    return {node: int(text) for node, text in found.items() if text}


def sleeping(cluster: Cluster, room: Path) -> str:
    """Write the eval that waits, and a protocol with it; return the protocol."""
    cluster.write("alice", room / "sleeper.py", SLEEPER)
    return f"name: wait\nbudget: 20s\nevals:\n- {{type: sleeper.Sleeper, path: {room}/go}}\n"
