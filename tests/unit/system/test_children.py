"""Children of the monitor, by what cannot become another process's."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
from pathlib import Path

import pytest
from piolet.system import children


def ended(child: children.Child) -> int:
    assert select.select([child.pidfd], [], [], 20)[0]
    status = child.collect()
    assert status is not None
    return status


def test_how_a_child_ended() -> None:
    child = children.fork(set())
    if child is None:
        os._exit(7)
    assert ended(child) == 7
    child = children.fork(set())
    if child is None:
        signal.pause()
        os._exit(0)
    assert child.collect() is None
    child.kill()
    assert ended(child) == -signal.SIGKILL


def test_a_child_that_was_collected_is_nobody() -> None:
    """Its number may be another process's by now, which is not to be killed or opened in its place."""
    child = children.fork(set())
    if child is None:
        os._exit(0)
    ended(child)
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        child.pid = bystander.pid
        child.kill()
        with pytest.raises(ProcessLookupError):
            child.open("ns/user")
        with pytest.raises(ProcessLookupError):
            child.write_map("uid_map", [(0, 0)])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_child_has_no_descriptor_but_those_that_it_is_to_have(tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    read, write = os.pipe()
    child = children.fork({write})
    if child is None:
        os.write(write, " ".join(os.listdir("/proc/self/fd")).encode())
        os._exit(0)
    assert ended(child) == 0
    numbers = set(map(int, os.read(read, 4096).split()))
    assert secret not in numbers and {number for number in numbers if number > 2} - {write} <= {3}, "3 is the listing"
    for descriptor in (secret, read, write):
        os.close(descriptor)


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_a_fork_that_fails_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    running = _children()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            if children.fork(set()) is None:
                signal.pause()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == set(before)
    assert _children() == running
