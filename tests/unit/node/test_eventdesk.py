"""How tasks end, from a datagram to events: only root may say it, and what a node cannot know it does not say."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.events.kinds import KINDS
from piolet.events.spool import Spool
from piolet.node.places import hear
from piolet.node.server.eventdesk import EventDesk
from piolet.node.watching import Seen
from piolet.system import linux
from piolet.transport import packets
from piolet.transport.wire import OUTCOME_LEAST

from tests.support import spools
from tests.wire import messages

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as slurmstepd has that says it")
ALICE = 65534
SEGV, KILL, TERM = 0x80 | signal.SIGSEGV, int(signal.SIGKILL), int(signal.SIGTERM)


class Desk:
    """A desk, whose loop turns where it is told to."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.path = Path(f"/tmp/piolet-outcomes-{os.getpid()}.sock")  # where a user may walk to
        self.spool: Spool = spools.spool(room / "events")[0]
        self.watcher, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hearing = hear(self.path)
        self.selector = selectors.DefaultSelector()
        self.desk = EventDesk(self.selector, self.theirs, self.hearing, self.spool)

    def send(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(data, socket.MSG_DONTWAIT, str(self.path))

    def events(self) -> list[dict[str, object]]:
        for key, _ in self.selector.select(0):
            key.data()
        self.spool.flush()
        found = spools.events(self.room / "events", "step.outcome")
        assert all(one["body"].keys() <= KINDS["step.outcome"].body.keys() for one in found)
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    tmp_path.chmod(0o755)
    (tmp_path / "events").mkdir()
    one = Desk(tmp_path)
    yield one
    one.selector.close()
    one.watcher.close()
    one.theirs.close()
    one.hearing.close()
    one.path.unlink()
    one.spool.close()


def test_which_job_a_component_is_of(desk: Desk) -> None:
    """As srun said it; of a job of one component, and of a slurmstepd of an earlier release, nothing is said."""
    desk.send(messages.outcome([(0, 0, 1)], job=12, het_job=11))
    desk.send(messages.outcome([(0, 0, 1)], job=13, het_job=13))
    desk.send(messages.outcome([(0, 0, 1)], job=14, het_job=11, size=OUTCOME_LEAST))
    assert [(one["job"], one.get("het_job")) for one in desk.events()] == [(12, 11), (13, None), (14, None)]


def test_tasks_that_end_alike_are_one_record(desk: Desk) -> None:
    ended = [(0, 0, 9_997), (SEGV, 5, 2), (3 << 8, 8, 1)]
    desk.send(messages.outcome(ended, job=12, step=1, uid=1001, restarts=2, array=(11, 4)))
    first, second, third = desk.events()
    assert first["body"] == {"status": 0, "why": "exit", "task": 0, "tasks": 9_997, "order": 0, "array": [11, 4]}
    assert second["body"] == {
        "signal": 11, "core": 1, "why": "signal", "task": 5, "tasks": 2, "order": 1, "array": [11, 4],
    }  # fmt: skip
    assert (third["status"], third["why"], third["order"]) == (3, "exit", 2)
    assert {(one["source"], one["uid"], one["job"], one["step"], one["run"]) for one in (first, second, third)} == {
        ("user", 1001, 12, "1", 2)
    }


def test_more_ways_than_there_is_room_for_are_counted(desk: Desk) -> None:
    desk.send(messages.outcome([(n << 8, n, 1) for n in range(32)], others=100))
    found = desk.events()
    assert len(found) == 33
    assert (found[-1]["why"], found[-1]["tasks"]) == ("other", 100) and "status" not in found[-1]


@pytest.mark.parametrize(
    ("status", "end", "why"),
    [
        (0, 0, "exit"), (9 << 8, 0, "exit"), (KILL, 0, "signal"), (TERM, 0, "signal"),
        (TERM, -5, "time_limit"), (KILL, -40, "time_limit"), (143 << 8, -5, "time_limit"),
        (KILL, 500, "signal"), (KILL, -500, "signal"), (SEGV, -5, "signal"), (1 << 8, -5, "exit"),
    ],
)  # fmt: skip
def test_why_tasks_ended(desk: Desk, status: int, end: int, why: str) -> None:
    """`end` is so many seconds from now; Slurm kills at once when a job's time is over, and again after KillWait."""
    desk.send(messages.outcome([(status, 0, 1)], end=int(time.time()) + end if end else 0))
    (one,) = desk.events()
    assert one["why"] == why


@pytest.mark.parametrize("group", ["0", "0+1"])
def test_who_ran_out_of_memory_says_the_kernel(desk: Desk, group: str) -> None:
    """Of a component of a step the control group has another name than Slurm's plugin."""
    seen = Seen("kernel.oom", "kernel", time.time(), body='{"scope":"cgroup"}', job=7, step=group)
    desk.watcher.send(packets.encode(seen))
    desk.send(messages.outcome([(KILL, 0, 1), (137 << 8, 1, 1), (1 << 8, 2, 1), (SEGV, 3, 1)]))
    desk.send(messages.outcome([(KILL, 0, 1)], step=1))
    found = desk.events()
    assert [one["why"] for one in found if one["step"] == "0"] == ["out_of_memory", "out_of_memory", "exit", "signal"]
    assert [one["why"] for one in found if one["step"] == "1"] == ["signal"]
    (oom,) = spools.events(desk.room / "events", "kernel.oom")
    assert (oom["job"], oom["step"], oom["uid"], oom["source"]) == (7, group, None, "kernel")


def as_user(path: Path, data: bytes) -> int:
    """Send it as a user; return the error's number, 0 where it was sent."""
    pid = os.fork()
    if pid == 0:
        number = 0
        try:
            linux.become(ALICE, ALICE, [])
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.sendto(data, str(path))
        except OSError as error:
            number = error.errno or 255
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_user_can_say_how_a_step_ended(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    assert as_user(desk.path, messages.outcome([(SEGV, 0, 1)], job=99, uid=1002)) == 13
    desk.path.chmod(0o666)  # and if the file were everybody's
    assert as_user(desk.path, messages.outcome([(SEGV, 0, 1)], job=99, uid=1002)) == 0
    assert desk.events() == []
    assert f"of uid {ALICE} said it" in caplog.text


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 504, messages.outcome([])[:-1], messages.outcome([]) + b"x"])
def test_what_is_no_outcome_is_dropped(desk: Desk, data: bytes) -> None:
    desk.send(data)
    desk.send(messages.outcome([(0, 0, 1)]))
    assert len(desk.events()) == 1


def test_steps_that_are_none_have_their_words(desk: Desk) -> None:
    desk.send(messages.outcome([(5 << 8, 0, 1)], step=0xFFFFFFFB))
    assert [one["step"] for one in desk.events()] == ["batch"]
