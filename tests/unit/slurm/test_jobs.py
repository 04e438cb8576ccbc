"""What Slurm's commands print of jobs and nodes; commands in their place print what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import SlurmError
from piolet.slurm import jobs


def scontrol(where: Path, text: str, status: int = 0) -> str:
    (where / "out").write_text(text)
    command = where / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$*" > {where}/words\ncat {where}/out\nexit {status}\n')
    command.chmod(0o755)
    return str(command)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu:2", 2),
        ("gpu", 1),
        ("gpu:h100:4(S:0-1)", 4),
        ("gpu:h100:4(S:0,1),shard:h100:32(S:0,1)", 4),
        ("gpu:a100:2,gpu:h100:3,craynetwork:4", 5),
        ("(null)", 0),
        ("nic:4", 0),
        ("gpu:1g.10gb:7", None),
        ("gpu:a100:1,gpu:3g.20gb:2(S:0)", None),
    ],
)
def test_how_many_gpus_slurm_has_of_a_node(tmp_path: Path, gres: str, count: int | None) -> None:
    line = f"NodeName=n1 Arch=x86_64 CoresPerSocket=1 Gres={gres} GresUsed=gpu:9 State=IDLE OS=Linux 6 x=Gres=gpu:7\n"
    found = jobs.gpus_of(["n1"], scontrol(tmp_path, line))
    assert found == ({} if count is None else {"n1": count})


def test_it_asks_once_for_all_nodes(tmp_path: Path) -> None:
    lines = "".join(f"NodeName=n{at} Gres=gpu:{at} State=IDLE\n" for at in (1, 2, 3))
    assert jobs.gpus_of(["n1", "n2", "n3"], scontrol(tmp_path, lines)) == {"n1": 1, "n2": 2, "n3": 3}
    assert (tmp_path / "words").read_text() == "show node --oneliner n[1-3]\n"


def test_where_slurm_does_not_say(tmp_path: Path) -> None:
    assert jobs.gpus_of(["n1"], scontrol(tmp_path, "Node n1 not found\n", 1)) == {}
    with pytest.raises(SlurmError, match="cannot start"):
        jobs.gpus_of(["n1"], str(tmp_path / "nothing"))


TOPOLOGY = """\
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2,7]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=n[3-4]
SwitchName=root Level=1 LinkSpeed=1 Nodes=n[1-4,7] Switches=leaf[1-2]
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TOPOLOGY, {"n1": "leaf1", "n2": "leaf1", "n7": "leaf1", "n3": "leaf2", "n4": "leaf2"}),
        ("", {}),
        ("slurm_load_topo error\n", {}),
        ("BlockName=b1 BlockIndex=0 Nodes=n[1-2] BlockSize=2\n", {}),
    ],
)
def test_at_which_switch_a_node_hangs(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    assert jobs.leaves(scontrol(tmp_path, text)) == found
    assert (tmp_path / "words").read_text() == "show topology\n"
