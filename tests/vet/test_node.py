"""The work on a node as the zygote calls it: in a forked child, with a SOCK_SEQPACKET connection."""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from piolet.slurm import gres
from piolet.vet import node
from piolet.vet.runner import parts, records

from tests.support.protocols import plan_of

NAUGHTY = str(Path(__file__).parent)


def plan(text: str) -> bytes:
    return plan_of(text, [NAUGHTY]).to_json()


def vet(data: bytes, environ: dict[str, str], facts: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
    """Do the work in a child and return its lines, each with its kind as 'is'."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.settimeout(30)
    pid = os.fork()
    if pid == 0:
        try:
            near.close()
            os.environ.clear()
            os.environ.update(environ)
            node.work(data, far.fileno(), facts or {})
        finally:
            os._exit(0)
    far.close()
    joiner = parts.Joiner()
    found = []
    while message := near.recv(1 << 20):
        assert message.endswith(b"\n")
        for line in message.splitlines(keepends=True):
            assert len(line) <= parts.LINE_MAX
            whole = joiner.take(0, line)
            if whole is not None:
                kind, content = records.decode(whole) or ("", json.loads(whole))
                found.append({"is": kind, **content})
    assert os.waitpid(pid, 0)[1] == 0
    return found


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"SLURMD_NODENAME": "node7", "HOME": str(tmp_path), "TMPDIR": "/not/on/this/node", "PATH": "/usr/bin:/bin"}


def test_a_vetting(environ: dict[str, str]) -> None:
    text = "evals:\n- {type: limits, min_nofile: 1}\n- {type: env, expected: {SLURMD_NODENAME: node7}}\n"
    lines = vet(plan(text), environ)
    assert [line["is"] for line in lines] == ["hello", "verdict", "verdict", "end"]
    assert {line["node"] for line in lines} == {"node7"}
    assert {line["outcome"] for line in lines[1:3]} == {"pass"}, lines
    assert lines[-1]["evals"] == 2


def test_long_details_come_through(environ: dict[str, str]) -> None:
    lines = vet(plan("evals:\n- type: naughty.Wordy\n"), environ)
    assert lines[1]["details"] == {"x": "y" * 5000}


def test_a_hung_eval_ends_with_the_budget(environ: dict[str, str]) -> None:
    lines = vet(plan("budget: 1s\nevals:\n- type: naughty.Hangs\n- {type: limits, min_nofile: 1}\n"), environ)
    found = {line["eval"]: line for line in lines if line["is"] == "verdict"}
    assert found["naughty.Hangs"]["reason"] == "it did not answer before the budget was spent"
    assert found["limits"]["outcome"] == "pass"
    assert lines[-1]["is"] == "end"


def test_only_what_a_node_can_judge_alone(environ: dict[str, str]) -> None:
    text = "evals:\n- type: limits\n- type: network_pair\n- {type: env, where: environment}\n"
    lines = vet(plan(text), environ)
    assert [line["eval"] for line in lines if line["is"] == "verdict"] == ["limits"]


def test_a_pass_is_used_again_until_an_xid(environ: dict[str, str]) -> None:
    data = plan("evals:\n- {type: limits, min_nofile: 1, cache: 1h}\n")
    assert [vet(data, environ)[1]["cached"] for _ in range(2)] == [False, True]
    log = {"kernel_log": ["NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."]}
    assert vet(data, environ, log)[1]["cached"] is False


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version":9}', b"\xff"])
def test_a_malformed_plan_is_one_line(data: bytes, environ: dict[str, str]) -> None:
    lines = vet(data, environ)
    assert len(lines) == 1
    assert lines[0]["error"].startswith("cannot vet on this node: the plan")


def test_a_plan_of_another_release_says_so(environ: dict[str, str]) -> None:
    """Orders for meetings are of the plan's version, too: what a node cannot obey, it does not begin."""
    (line,) = vet(b'{"version":1,"name":"p","tasks":[]}', environ)
    assert "srun's Piolet and this node's are of different releases" in line["error"]


def test_a_task_that_went_away_raises_nothing() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.close()
    node.work(plan("evals:\n- type: limits\n"), far.fileno(), {})
    far.close()


def test_gres_conf_is_not_the_users(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which GPU is behind Slurm's number says the file that pioletd was started with, not one that the user names."""
    seen = []

    def by_file(names: Sequence[str], name: str, variables: Mapping[str, str]) -> list[str]:
        seen.append((tuple(names), name, dict(variables)))
        return list(names)

    monkeypatch.setattr(gres, "by_file", by_file)
    for key, value in {**environ, "SLURM_CONF": "/mine/slurm.conf", "SLURM_STEP_GPUS": "1,0"}.items():
        monkeypatch.setenv(key, value)
    _, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    node.work(plan("evals:\n- type: limits\n"), far.fileno(), {}, closed={"SLURM_CONF": "/etc/site/slurm.conf"})
    assert seen == [(("1", "0"), "node7", {"SLURM_CONF": "/etc/site/slurm.conf"})]
    monkeypatch.delenv("SLURM_STEP_GPUS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # of the step's own, where Slurm confines its devices
    node.work(plan("evals:\n- type: limits\n"), far.fileno(), {}, closed={})
    assert len(seen) == 1


def test_prepare_returns_the_work() -> None:
    work = node.prepare(["/etc/piolet/evals"])
    assert isinstance(work, functools.partial) and work.func is node.work
