"""Attacks on vetting: what is recorded of a node, what a user's files are taken for, what of others they are told."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.support import spools
from tests.support.waiting import wait_until

TRAPS = (
    "heapq",
    "selectors",
    "json",
    "socket",
    "struct",
    "zipfile",
    "importlib",
    "tokenize",
    "random",
    "logging",
    "pip",
)


LIAR = """\
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Liar(Eval):
    name = "gpu_health"
    kind = "gpu_health"
    mark: str = parameter("", text="")

    def check(self, context: Context) -> Verdict:
        return Verdict("fail", "Xid 79 " + self.mark)
"""


@attack("whose a verdict is says the user")
def test_a_verdict_names_another_node_and_job(cluster: Cluster, faults: Faults) -> None:
    """Row 14. Promise: node, job and step of a record are the kernel's and the daemon's word, and what a user's own
    eval said is marked as a user's word. Alice vets on node1 and says that she is job 4242 on node2."""
    room, mark = cluster.room("alice"), secrets.token_hex(8)
    cluster.write("alice", room / "liar.py", LIAR)
    text = f"name: p\nevals:\n- {{name: gpu_health, type: liar.Liar, mark: '{mark}'}}\n"
    cluster.write("alice", room / "p.yaml", text)
    lies = "SLURMD_NODENAME=node2 SLURM_JOB_ID=4242 SLURM_JOBID=4242 SLURM_STEP_ID=77 SLURM_STEPID=77"
    # srun has every task of every step begin with this, the vet step's too: what it prints becomes the environment.
    words = "\n".join(f"echo export {one}" for one in lies.split())
    prolog = cluster.write("alice", room / "prolog.sh", f"#!/bin/sh\n{words}\n", 0o755)
    options = ["-w", "node1", "--vet=p.yaml,retries=0,report=/dev/null"]
    done = cluster.run("alice", "srun", *options, "true", cwd=room, env={"SLURM_TASK_PROLOG": str(prolog)})
    wait_until(lambda: [one for one in faults.spooled("node1") if mark in json.dumps(one)], 10, f"the record: {done}")
    (entry, *_) = [one for one in faults.spooled("node1") if mark in json.dumps(one)]
    ours = {name: value for name, value in entry.items() if name != "said"}
    if ours["node"] != "node1" or ours["job"] == 4242 or ours["step"] == "77":
        raise Broken(f"the spool of node1 believes alice: {ours}")
    if ours["origin"] != "user" or ours["source"] != "user" or "code" in ours:
        raise Broken(f"the record does not say that it is a user's word: {ours}")


@attack("the spool has no share for each user")
def test_one_users_verdicts_push_out_those_of_others(tmp_path: Path) -> None:
    """Row 11. Promise: what one user's vettings say cannot push what others' said out of the spool. Alice says as much
    as 12 connections could in a minute; bob has said one thing before."""
    from piolet.node.server.verdicts import Who

    spool, verdicts = spools.spool(tmp_path)
    keys = b'"origin":"user","kind":null,"plan":null,"protocol":null,"release":null'
    line = b"{" + keys + b',"said":{"eval":"x","text":"%s"}}'
    verdicts.put(Who(1002, 1), line % b"what bob said")
    spool.flush()
    for _ in range(10):
        for _ in range(1200):
            verdicts.put(Who(1001, 2), line % (b"a" * 2000))
        spool.flush(10)
    texts = [path.read_bytes() for path in tmp_path.iterdir()]
    if not any(b"what bob said" in text for text in texts):
        raise Broken(f"what bob said is gone, and alice has {sum(map(len, texts)) >> 20} MiB")
    if sum(map(len, texts)) > 8 << 20:
        raise Broken(f"one user has {sum(map(len, texts)) >> 20} MiB in the spool")


SEES_LOG = """\
import json
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict


@dataclass(frozen=True)
class Sees(Eval):
    name = "sees"

    def check(self, context: Context) -> Verdict:
        lines = [line for line in context.facts.get("kernel_log", ()) if "bobs_secret" in line or "pid=4242" in line]
        return Verdict("fail", lines[-1][:300]) if lines else Verdict("pass")
"""


@attack("the kernel's log as it is")
def test_a_vetting_is_told_of_other_users_processes(cluster: Cluster, faults: Faults) -> None:
    """Row 13. Promise: of the kernel's log, a vetting learns what happened to devices, and no process of others."""
    line = "NVRM: Xid (PCI:0000:3b:00): 31, pid=4242, name=bobs_secret_job, Ch 00000010\n"
    with open("/dev/kmsg", "w") as log:
        log.write(line)
    room = cluster.room("alice")
    cluster.write("alice", room / "sees.py", SEES_LOG)
    cluster.write("alice", room / "p.yaml", "name: p\nevals:\n- {name: sees, type: sees.Sees}\n")
    done = cluster.run("alice", "srun", "-N1", "--vet=p.yaml,retries=0", "true", cwd=room)
    if done.status != 0 and ("bobs_secret" in done.both or "pid=4242" in done.both):
        raise Broken(f"alice's vetting was told of bob's process: {done.err[:400]}")
    done.good()


def traps(cluster: Cluster, user: str) -> Path:
    """Return a directory with files named after modules of Python's library; each leaves a mark when it is imported."""
    room = cluster.room(user)
    for name in TRAPS:
        text = f"open({str(room / 'sprung')!r}, 'a').write('{name}\\n')\nraise ImportError('trap {name}')\n"
        cluster.write(user, room / f"{name}.py", text)
    return room


@attack("Pythons are not isolated")
def test_files_named_like_modules_in_the_directory_of_a_vetting(cluster: Cluster, faults: Faults) -> None:
    """Row 15. Promise: no Python that we start imports from the working directory: a directory of somebody else's is a
    place to work in. Bob vets in a directory of alice's."""
    room = traps(cluster, "alice")
    edf = cluster.edf("bob", f'image = "{cluster.demo_image}"\nmounts = ["{room}:{room}"]\nworkdir = "{room}"\n')
    protocol = cluster.room("bob") / "p.yaml"
    cluster.write(
        "bob", protocol, "name: p\nevals:\n- {type: limits, where: environment}\n- {name: host, type: limits}\n"
    )
    room.chmod(0o777)
    words = ["srun", "-N1", f"--environment={edf}", f"--vet={protocol},retries=0", "true"]
    done = cluster.run("bob", *words, cwd=room)
    if (room / "sprung").exists():
        raise Broken(f"a file of alice's was executed by bob's vetting: {(room / 'sprung').read_text().split()}")
    done.good()


@attack("Pythons are not isolated")
@pytest.mark.parametrize("words", [["vet", "run"], ["score", "run"]], ids=" ".join)
def test_files_named_like_modules_in_the_directory_of_a_command(cluster: Cluster, words: list[str]) -> None:
    """Row 15. The same promise for commands on the login side, the sampler of `piolet score run` and pip for the
    requirements of an eval included."""
    room = traps(cluster, "alice")
    room.chmod(0o777)
    own = cluster.room("bob")
    cluster.write(
        "bob", own / "p.yaml", "name: p\nevals:\n- {name: host, type: limits, requirements: [no-such-thing-at-all]}\n"
    )
    arguments = {
        "vet run": [str(own / "p.yaml")],
        "score run": ["--out", str(own / "score"), "--", "sleep", "0.2"],
    }[" ".join(words)]
    cluster.run("bob", "piolet", *words, *arguments, cwd=room, env={"PIP_INDEX_URL": "http://127.0.0.1:9/"})
    if (room / "sprung").exists():
        found = (room / "sprung").read_text().split()
        raise Broken(f"a file of alice's was executed by bob's `piolet {' '.join(words)}`: {found}")
