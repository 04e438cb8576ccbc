"""Attacks on scoring: root's processes beside a step, made to write where its user may not, or to wait."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, by_kernel
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster


@by_kernel("what is written for a user is written by a process that has become the user")
@pytest.mark.parametrize("whose", ["bob", "root"])
def test_the_directory_of_a_score_is_a_link_to_anothers(cluster: Cluster, faults: Faults, whose: str) -> None:
    """Promise: root's sampler never opens a path of a user's. A data set's directory that is a link to a directory of
    somebody else's gives nothing there, whatever is in the way."""
    room = cluster.room("alice")
    target = cluster.room("bob")
    if whose == "root":
        os.chown(target, 0, 0)
    target.chmod(0o755)
    (room / "score").symlink_to(target)
    done = cluster.run("alice", "srun", "-w", "node1", f"--score=out={room}/score", "sleep", "0.5", cwd=room)
    done.good()
    made = list(target.iterdir())
    if made:
        raise Broken(f"scoring wrote into a directory of {whose}'s: {made}")


@by_kernel("what is written for a user is written by a process of its own")
def test_a_fifo_in_the_place_of_a_data_set_holds_up_others(cluster: Cluster, faults: Faults) -> None:
    """Class of FIFOs. Promise: a FIFO where alice's samples belong holds up neither her srun nor bob's scoring."""
    room, bobs = cluster.room("alice"), cluster.room("bob")
    (room / "score").mkdir()
    cluster.give("alice", room / "score")
    os.mkfifo(room / "score" / "node1.journal")
    cluster.give("alice", room / "score" / "node1.journal")
    began = time.monotonic()
    try:
        cluster.run("alice", "srun", "-w", "node1", f"--score=out={room}/score", "sleep", "0.3", cwd=room, timeout=20)
    except subprocess.TimeoutExpired:
        raise Broken("a FIFO in the data set's place holds up the step's srun") from None
    cluster.run("bob", "srun", "-w", "node1", f"--score=out={bobs}/score", "sleep", "0.5", cwd=bobs, timeout=30).good()
    if time.monotonic() - began > 20:
        raise Broken("a FIFO held up the end of a scored step")
    if not written(bobs):
        raise Broken("bob's step was not scored")


def written(room: Path) -> list[Path]:
    return [path for path in room.rglob("*") if path.is_file()]
