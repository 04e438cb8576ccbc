"""A node on which alice starts steps, and what is checked of one that is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.support import Cluster, Result


@dataclass(frozen=True)
class Node:
    """A node on which alice starts steps; `runtime` is what builds its containers."""

    cluster: Cluster
    name: str
    runtime: str

    def srun(self, text: str, *command: str, room: Path | None = None, **more: str) -> Result:
        """Run a command in the environment of a definition file with this text."""
        room = room or self.cluster.room("alice")
        edf = self.cluster.edf("alice", text, room)
        return self.cluster.srun("alice", edf, "-w", self.name, *command, cwd=room, env=more)

    def sh(self, text: str, script: str, **more: str) -> Result:
        return self.srun(text, "sh", "-c", script, room=None, **more)


def refused(done: Result, *words: str) -> None:
    """Check that a step did not run, and that one clear sentence says why."""
    assert done.status != 0
    assert done.out == ""
    assert done.err.count("piolet: error: ") == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
