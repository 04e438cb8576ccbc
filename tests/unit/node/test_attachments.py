"""Root's part in attaching: who may enter, what proves a container of before, and what is emptied again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from piolet.base.errors import ContainerError
from piolet.node.requests import Announced, Attach, Build
from piolet.node.root import attachments
from piolet.node.root.attachments import Attachments, find_again
from piolet.node.root.endings import Endings, Remains
from piolet.node.root.state import Known
from piolet.node.root.steps import Step
from piolet.steps import hierarchies
from piolet.system import processes

UID = 1234


class Emptied:
    """Stands in for Endings: which containers were emptied; their descriptors are closed, as they are its own."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def empty(self, remains: Remains) -> None:
        os.close(remains.user_ns)
        self.steps.append(remains.of.step)


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def emptied() -> Emptied:
    return Emptied()


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def made(emptied: Emptied, clock: Time) -> Attachments:
    return Attachments(cast(Endings, emptied), clock)


def announced(step: str = "12.5", uid: int = UID) -> Announced:
    return Announced(step, os.getpid(), uid, uid, [])


@contextlib.contextmanager
def container(name: str = "12.0", uid: int = UID, ready: bool = True) -> Iterator[Step]:
    """A step with a container, whose namespaces are this process's."""
    order = Build(key=1, digest=None, identity=[], timeout_s=5.0, plan="{}")
    step = Step(order, announced(name, uid), 0.0, ready=ready, made_in=7, start="/srv")
    descriptors = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("user", "user", "mnt")]
    step.remains = Remains(Known(name, os.getpid(), None), descriptors[0])
    step.inside = (descriptors[1], descriptors[2])
    yield step
    for descriptor in descriptors:
        os.close(descriptor)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_same_user_and_job_enter(made: Attachments, emptied: Emptied) -> None:
    with container() as step:
        before = open_files()
        answer, inside = made.take(Attach(9, "12.0"), announced(), step)
        assert (answer.key, answer.made_in, answer.start, inside) == (9, 7, "/srv", step.inside)
        made.end(9)
        made.end(9)
        assert open_files() == before and emptied.steps == []


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (announced(uid=UID + 1), "step 12.0 has no container on this node"),
        (announced("13.5"), "step 12.0 has no container on this node"),
        (announced("1.5"), "step 12.0 has no container on this node"),
    ],
)
def test_others_are_told_what_is_said_of_none(made: Attachments, who: Announced, said: str) -> None:
    with container() as step, pytest.raises(ContainerError) as of_this:
        made.take(Attach(9, "12.0"), who, step)
    with pytest.raises(ContainerError) as of_none:
        made.take(Attach(9, "12.0"), announced(), None)
    assert of_this.value.message == of_none.value.message == said
    assert of_this.value.hint == of_none.value.hint


def test_one_that_is_not_ready(made: Attachments) -> None:
    with container(ready=False) as step, pytest.raises(ContainerError, match="is not ready yet"):
        made.take(Attach(9, "12.0"), announced(), step)


def test_a_container_that_is_over_is_emptied_while_others_may_enter(
    made: Attachments, emptied: Emptied, clock: Time
) -> None:
    """At growing intervals, and once more when the last of them has ended."""
    with container() as step:
        before = open_files()
        for key in (9, 10):
            made.take(Attach(key, "12.0"), announced(), step)
    assert made.next_due() is None
    made.over("13.0")
    assert made.next_due() is None, "that is another's"
    made.over("12.0")
    first = made.next_due()
    assert first is not None and first < clock.now + 0.1
    made.tick()
    assert emptied.steps == []
    times = []
    for _ in range(8):
        due = made.next_due()
        assert due is not None
        times.append(due - clock.now)
        clock.now = due
        made.tick()
    assert len(emptied.steps) == 2 * 8 and times[-1] == pytest.approx(1.0)
    made.end(9)
    made.end(10)
    assert len(emptied.steps) == 2 * 8 + 2 and made.next_due() is None
    assert open_files() == before - 3


@contextlib.contextmanager
def of_before(uid: int = UID, more: str = "sleep 100") -> Iterator[tuple[Known, subprocess.Popen[str]]]:
    """A slurmstepd, as it were: a shell whose child is in a user and a mount namespace that `uid` has made."""
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    script = '"$@" & wait'
    inner = ["unshare", "--user", "--mount", "sh", "-c", f"echo up; {more} & wait"]
    words = ["sh", "-c", script, "sh", *become, *inner]
    stepd = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert stepd.stdout is not None
        if stepd.stdout.readline() != "up\n":
            pytest.skip("no user namespaces here")
        (task,) = hierarchies.children_of(stepd.pid)
        user, mounts = (os.stat(f"/proc/{task}/ns/{kind}").st_ino for kind in ("user", "mnt"))
        yield Known("12.0", stepd.pid, processes.start_time(stepd.pid), uid, user, mounts, 3, "/srv"), stepd
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stepd.pid, signal.SIGKILL)
        stepd.communicate()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@needs_root
def test_a_container_of_before_is_found_again_and_kept(made: Attachments, clock: Time) -> None:
    before = open_files()
    with of_before() as (known, stepd):
        made.know(known)
        started = open_files()
        for key in (9, 10):
            answer, inside = made.take(Attach(key, "12.0"), announced(), None)
            assert (answer.made_in, answer.start) == (3, "/srv")
            assert [os.fstat(one).st_ino for one in inside] == [known.user, known.mounts]
        for who in (announced(uid=UID + 1), announced("120.5"), announced("1.5")):
            with pytest.raises(ContainerError, match="has no container on this node"):
                made.take(Attach(11, "12.0"), who, None)
        made.end(9)
        made.end(10)
        assert open_files() == started + 2
        made.over("12.0")
        assert open_files() == started
        with pytest.raises(ContainerError, match="has no container on this node"):
            made.take(Attach(11, "12.0"), announced(), None)
        assert stepd.poll() is None
    assert open_files() == before


@needs_root
@pytest.mark.parametrize(
    "change",
    [{"user": 1}, {"mounts": 1}, {"user": 0}, {"mounts": 0}, {"started": 1}, {"started": None}, {"uid": UID + 1}],
    ids=str,
)
def test_what_proves_nothing(made: Attachments, change: dict[str, int]) -> None:
    """Numbers of namespaces that others may have by now, a process with slurmstepd's number, another's namespace."""
    before = open_files()
    with of_before() as (known, _):
        started = open_files()
        assert find_again(replace(known, **change)) == ()  # type: ignore[arg-type]
        assert open_files() == started
        if "uid" not in change:
            made.know(replace(known, **change))  # type: ignore[arg-type]
            with pytest.raises(ContainerError, match="is not proved to be its own"):
                made.take(Attach(9, "12.0"), announced(), None)
        found = find_again(known)
        assert len(found) == 2
        for descriptor in found:
            os.close(descriptor)
    assert open_files() == before


@needs_root
def test_a_task_that_made_namespaces_of_its_own_proves_nothing() -> None:
    with of_before() as (known, stepd):
        own = (os.stat("/proc/self/ns/user").st_ino, os.stat("/proc/self/ns/mnt").st_ino)
        assert find_again(replace(known, user=own[0], mounts=own[1])) == ()
        stepd.kill()
        stepd.wait()
        assert find_again(known) == (), "slurmstepd has ended"


def test_the_kernel_says_who_made_a_namespace() -> None:
    descriptor = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        assert attachments._owner(descriptor) == 0
    finally:
        os.close(descriptor)
