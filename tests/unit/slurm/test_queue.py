"""What squeue tells of the jobs that run."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import SlurmError
from piolet.slurm import queue

TEXT = """\
112|112|1000|alice|ml|debug|nid[001-002]|train|v2
114|113_7|1001|bob|(null)|long|nid003|array
115|115_[1-9]|1001|bob|ml|long||waits
117|116+1|1001|bob|ml|long|nid004|parts
nonsense
"""


def squeue(tmp_path: Path, text: str, status: int = 0) -> str:
    """Return a squeue that prints this."""
    (tmp_path / "text").write_text(text)
    path = tmp_path / "squeue"
    path.write_text(f"#!/bin/sh\ncat {tmp_path}/text\necho 'slurm_load_jobs error' >&2\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_jobs_with_nodes(tmp_path: Path) -> None:
    found = queue.running(squeue(tmp_path, TEXT))
    assert found.keys() == {"112", "114", "117"}
    assert (found["112"].uid, found["112"].nodes) == (1000, ("nid001", "nid002"))
    assert found["112"].meta == {
        "user": "alice", "account": "ml", "partition": "debug", "nodes": ["nid001", "nid002"], "name": "train|v2",
    }  # fmt: skip
    assert found["114"].meta["array_job"] == "113" and found["114"].meta["array_task"] == "7"
    assert "account" not in found["114"].meta
    assert found["117"].meta["het_job"] == "116" and found["117"].meta["het_component"] == "1"


def test_a_squeue_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="cannot tell which jobs run: slurm_load_jobs error"):
        queue.running(squeue(tmp_path, "", 1))
    with pytest.raises(SlurmError, match="cannot start"):
        queue.running("/absent/squeue")
