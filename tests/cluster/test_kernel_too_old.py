"""A kernel that is too old for containers (before Linux 5.12): that is said in a sentence, and other steps run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from piolet.node import imagemounts

from tests.cluster.faults import Faults, assert_sentence
from tests.cluster.support import Cluster

pytestmark = pytest.mark.skipif(imagemounts.can_set_attributes(), reason="this kernel is new enough")
SENTENCE = "is too old for containers: 5.12 is the oldest"


def test_a_step_is_told(cluster: Cluster, tiny_edf: Path) -> None:
    faults = Faults(cluster, tiny_edf)
    done = faults.srun("alice", "-w", "node1", "true")
    assert_sentence(done, "node node1: ", SENTENCE, "boot a newer kernel")
    cluster.run("alice", "srun", "-w", "node1", "true").good()
    assert faults.nodes_are_well()


def test_the_doctor_says_it(cluster: Cluster, tiny_edf: Path) -> None:
    faults = Faults(cluster, tiny_edf)
    command = (cluster.layout.venv_bin / "piolet", "--config", cluster.layout.piolet_toml, "doctor")
    said = subprocess.run(faults.on_node("node1", *command), capture_output=True, text=True, check=False, timeout=120)
    assert SENTENCE in said.stdout and said.returncode != 0
