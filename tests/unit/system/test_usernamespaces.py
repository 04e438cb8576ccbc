"""The change of user: what is left of root, with and without what a user namespace may need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.system import linux, usernamespaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
UID, GID = 4242, 5353
SYS_ADMIN = 1 << 21


def in_child(work: Callable[[], None]) -> None:
    """Run it in a child, which must end well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def capabilities() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name.startswith("Cap")
    }


@pytest.mark.parametrize("administrator", [False, True])
def test_there_is_no_way_back(administrator: bool) -> None:
    def work() -> None:
        linux.become(UID, GID, [GID, 77], administrator=administrator)
        assert (os.getresuid(), os.getresgid(), sorted(os.getgroups())) == ((UID,) * 3, (GID,) * 3, [77, GID])
        left = capabilities()
        kept = SYS_ADMIN if administrator else 0
        assert left["CapPrm"] == left["CapEff"] == kept and left["CapInh"] == left["CapAmb"] == 0
        with pytest.raises(PermissionError):
            os.setuid(0)
        with pytest.raises(PermissionError):
            os.setgid(0)
        with pytest.raises(PermissionError):
            os.setgroups([0])
        # Files that are root's stay root's: CAP_SYS_ADMIN opens none.
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_bytes()

    in_child(work)


def test_what_is_kept_goes_with_the_new_namespace() -> None:
    def work() -> None:
        own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        linux.become(UID, GID, [GID], administrator=True)
        linux.unshare(linux.CLONE_NEWUSER)
        assert capabilities()["CapEff"] & SYS_ADMIN, "in the new one"
        # In the namespaces of before it can do nothing any more.
        with pytest.raises(PermissionError):
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        with pytest.raises(PermissionError):
            linux.setns(own, linux.CLONE_NEWNS)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)

    in_child(work)


def test_others_of_the_user_cannot_look_into_it() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.become(UID, GID, [GID], administrator=True)
            os.write(theirs, b"1")
            os.read(ours, 0)
            while True:
                os.sched_yield()
        finally:
            os._exit(1)
    try:
        assert os.read(ours, 1) == b"1"

        def work() -> None:
            linux.become(UID, GID, [GID])
            for name in ("environ", "mem", "maps"):
                with pytest.raises(PermissionError):
                    os.open(f"/proc/{pid}/{name}", os.O_RDONLY)

        in_child(work)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_it_is_not_needed_where_users_may_make_namespaces() -> None:
    expected = usernamespaces._user_can(administrator=False)
    assert usernamespaces.needs_administrator() is not expected or not expected
