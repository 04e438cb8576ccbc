"""Bytes that processes moved, as asked of a process that is their user."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from piolet.node.root.observing import Observing
from piolet.observe import moved
from piolet.observe.moved import Movers


@contextmanager
def served(who: tuple[int, int] = (0, 0)) -> Iterator[tuple[Movers, list[int]]]:
    """Start processes in this one's stead, by forks of it; yield what asks, and their pids."""
    ours, theirs = moved.pair()
    pids: list[int] = []

    def start() -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(theirs, 64, 1)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                try:
                    moved.serve(socket.socket(fileno=descriptors[0]))
                finally:
                    os._exit(0)
            pids.append(pid)
            os.close(descriptors[0])

    thread = threading.Thread(target=start)
    thread.start()
    movers = Movers(ours)
    try:
        yield movers, pids
    finally:
        movers.end()
        ours.shutdown(socket.SHUT_RDWR)  # the forks have copies of it
        thread.join(10)
        ours.close()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_it_tells_of_processes_that_may_be_read() -> None:
    with served() as (movers, pids):
        ask = movers.of(1000, 1000)
        told = ask([os.getpid(), 2**30])
        assert set(told) == {os.getpid()}
        assert told[os.getpid()][0] > 0
        again = ask([os.getpid()])
        assert again[os.getpid()][0] >= told[os.getpid()][0]
        assert len(pids) == 1  # one for all questions


def test_one_that_a_user_stopped_is_given_up_and_not_asked_again_at_once() -> None:
    with served() as (movers, pids):
        ask = movers.of(1000, 1000)
        ask([os.getpid()])
        os.kill(pids[0], signal.SIGSTOP)
        began = time.monotonic()
        assert ask([os.getpid()]) == {}
        assert time.monotonic() - began < 5
        assert ask([os.getpid()]) == {}
        assert len(pids) == 1
        assert movers.of(1001, 1001)([os.getpid()])  # who is nobody else's trouble


def test_who_has_no_step_any_more_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a while: short steps follow each other."""
    with served() as (movers, pids):
        ask = movers.of(1000, 1000)
        ask([os.getpid()])
        movers.keep(())
        assert ask([os.getpid()])
        assert len(pids) == 1
        monkeypatch.setattr(moved, "LINGER_S", 0.0)
        movers.keep(())
        assert movers._channels == {}


def test_root_s_processes_are_not_asked_for() -> None:
    with served() as (movers, pids):
        assert movers.of(0, 0)([os.getpid()]) == {}
        assert pids == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as pioletd has")
def test_root_s_process_starts_one_that_is_the_user_and_reads_that_user_s_alone() -> None:
    """A process of nobody's is read, one of daemon's is not."""
    nobody, daemon = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    sleepers = [subprocess.Popen(["sleep", "100"], user=one.pw_uid, group=one.pw_gid) for one in (nobody, daemon)]
    pids = [one.pid for one in sleepers]

    def observe(channel: socket.socket, _: Mapping[str, int]) -> None:
        told = Movers(channel, 5.0).of(nobody.pw_uid, nobody.pw_gid)(pids)
        os.write(1, json.dumps(list(told)).encode() + b"\n")
        time.sleep(100)

    alive, stop = socket.socketpair()
    answer, said = os.pipe()
    observing = os.fork()
    if observing == 0:
        try:
            alive.close()
            os.dup2(said, 1)
            Observing(daemon, observe, [], stop).run()
        finally:
            os._exit(0)
    stop.close()
    os.close(said)
    try:
        with open(answer) as pipe:
            assert json.loads(pipe.readline()) == pids[:1]
        (mover,) = [pid for pid in _children(observing) if _name(pid) == "pioletd-io"]
        assert _uids(mover) == {nobody.pw_uid}
    finally:
        alive.close()
        os.waitpid(observing, 0)
        for one in sleepers:
            one.kill()
            one.wait()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def _uids(pid: int) -> set[int]:
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("Uid:")]
    return set(map(int, line.split()[1:]))
