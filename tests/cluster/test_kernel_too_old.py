"""A kernel that is too old for containers (before Linux 5.12): that is said in a sentence, and other steps run."""

from __future__ import annotations

import subprocess

import pytest
from piolet.node.root import imagemounts

from tests.cluster.faults import Faults, assert_sentence
from tests.cluster.support import BUSYBOX, Cluster

pytestmark = pytest.mark.skipif(imagemounts.can_set_attributes(), reason="this kernel is new enough")
SENTENCE = "is too old for containers: 5.12 is the oldest"


@pytest.fixture
def faults(cluster: Cluster) -> Faults:
    """With a definition of a user's own image: none is pulled on such a machine, which has no cage for that, either."""
    room = cluster.room("alice")
    tree = room / "tree" / "bin"
    tree.mkdir(parents=True)
    (tree / "true").write_bytes(BUSYBOX.read_bytes())
    subprocess.run(["mksquashfs", tree.parent, room / "own.sqsh", "-quiet", "-no-progress"], check=True)
    (room / "own.sqsh").chmod(0o644)
    return Faults(cluster, cluster.edf("alice", f'image = "{room}/own.sqsh"\n'))


def test_a_step_is_told(faults: Faults) -> None:
    done = faults.srun("alice", "-w", "node1", "true", timeout=120)
    assert_sentence(done, "node node1: ", SENTENCE, "boot a newer kernel")
    faults.cluster.run("alice", "srun", "-w", "node1", "true").good()
    assert faults.nodes_are_well()


def test_a_pull_is_told(faults: Faults) -> None:
    done = faults.cluster.run("alice", "piolet", "image", "pull", faults.cluster.demo_image, timeout=120)
    assert_sentence(done, "gives no cage to read images in")


def test_the_doctor_says_it(faults: Faults) -> None:
    layout = faults.cluster.layout
    command = (layout.venv_bin / "piolet", "--config", layout.piolet_toml, "doctor")
    said = subprocess.run(faults.on_node("node1", *command), capture_output=True, text=True, check=False, timeout=120)
    assert SENTENCE in said.stdout and said.returncode != 0
