"""The control groups of a step: those of its task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from piolet.steps import hierarchies


def test_the_groups_of_a_step_are_those_of_its_task() -> None:
    """Not before there is one."""
    code = "import os, sys, time; sys.stdin.readline(); os.fork() or time.sleep(100); time.sleep(100)"
    stepd = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, process_group=0)
    try:
        assert hierarchies.children_of(stepd.pid) == []
        assert hierarchies.of_task(stepd.pid, 0.05) == [], "it is in no group of Slurm's, and has no task"
        assert stepd.stdin is not None
        stepd.stdin.write("go\n")
        stepd.stdin.flush()
        assert hierarchies.of_task(stepd.pid, 20) == hierarchies.of(stepd.pid)
        assert len(hierarchies.children_of(stepd.pid)) == 1
    finally:
        os.killpg(stepd.pid, signal.SIGKILL)
        stepd.communicate()
