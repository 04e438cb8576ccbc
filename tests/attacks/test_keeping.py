"""Attacks on what saves containers: whose step, which file, what of the host, for how long."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack, by_kernel
from tests.attacks.test_processes import CONTROLLERS, groups_of, sleepers
from tests.cluster.faults import Faults, end
from tests.cluster.support import Cluster
from tests.support.waiting import wait_until

# What somebody does who has our code and no scruples: enter any process's container.
ENTER = (
    "import os, sys; from piolet.container import view; v = view.of(int(sys.argv[1])); "
    "print(os.listdir(os.open('.', os.O_RDONLY, dir_fd=v.tree)))"
)


@contextlib.contextmanager
def held(faults: Faults, script: str, more: str = "", room: Path | None = None) -> Iterator[str]:
    """Run a step of alice's on node1 that does something and waits; give its name."""
    cluster = faults.cluster
    edf = cluster.edf("alice", f"base_environment = {str(faults.edf)!r}\n{more}", room)
    words = ["sh", "-c", f"{script}; echo $SLURM_JOB_ID.$SLURM_STEP_ID; read line"]
    srun = cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", *words, cwd=edf.parent)
    assert srun.stdout is not None
    step = srun.stdout.readline().strip()
    try:
        yield step
    finally:
        faults.cancel_all()
        with contextlib.suppress(ValueError):
            end(srun)


def saved(cluster: Cluster, user: str, step: str, target: str, *options: str, timeout: float = 60) -> bool:
    try:
        return cluster.run(user, "piolet", "env", "save", *options, step, target, timeout=timeout).status == 0
    except subprocess.TimeoutExpired:
        return False


@by_kernel("only who has made a user namespace may enter it from outside")
def test_a_step_of_another_is_entered(cluster: Cluster, faults: Faults) -> None:
    """Promise: a container's root is its user's to read. Bob has found the process of a task of alice's."""
    with held(faults, "echo secret >/secret; sleep 654 & true"):
        wait_until(lambda: sleepers(faults, "654"))
        (pid,) = sleepers(faults, "654")
        python = [str(cluster.layout.venv_bin / "python"), "-I", "-c", ENTER, str(pid)]
        assert (
            "secret"
            in subprocess.run(
                ["setpriv", f"--reuid={os.stat(f'/proc/{pid}').st_uid}", "--clear-groups", *python],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        done = cluster.run("bob", *python)
    if "secret" in done.both:
        raise Broken("bob has read the root of alice's container")


@attack("saving writes over what is there")
def test_a_file_of_another_is_replaced(cluster: Cluster, faults: Faults) -> None:
    """Promise: what is saved never takes the place of another user's file, whoever may write to the directory."""
    room = cluster.room("alice")
    room.chmod(0o777)
    cluster.write("bob", room / "x.sqsh", "bob's")
    with held(faults, ":") as step:
        saved(cluster, "alice", step, str(room / "x.sqsh"), "--force")
    if (room / "x.sqsh").read_bytes() != b"bob's":
        raise Broken("alice's save has replaced bob's file")


@attack("saving writes over what is there")
def test_a_link_in_the_place_of_the_file(cluster: Cluster, faults: Faults) -> None:
    """Promise: what is saved is written to the name that was given. Bob has put a link to a file of alice's there."""
    room = cluster.room("bob")
    room.chmod(0o777)
    victim = cluster.write("alice", cluster.room("alice") / "thesis", "years of work")
    os.symlink(victim, room / "x.sqsh")
    with held(faults, ":") as step:
        saved(cluster, "alice", step, str(room / "x.sqsh"), "--force")
    if victim.read_bytes() != b"years of work":
        raise Broken("alice's save has written over the file that bob's link leads to")


@attack("saving follows links")
def test_a_link_in_the_container_leads_to_the_host(cluster: Cluster, faults: Faults) -> None:
    """Promise: what is saved is in the container. What runs there has made links to what only the host has: with them
    an image that alice publishes would have her keys."""
    room = cluster.room("alice")
    secret = cluster.write("alice", cluster.room("alice") / "key", "PRIVATE KEY of alice")
    with held(faults, f"ln -s {secret} /file; ln -s {secret.parent} /folder", room=room) as step:
        assert saved(cluster, "alice", step, str(room / "x.sqsh"))
    words = ["unsquashfs", "-cat", str(room / "x.sqsh"), "file"]
    found = subprocess.run(words, capture_output=True, check=False).stdout
    listed = subprocess.run(["unsquashfs", "-l", str(room / "x.sqsh")], capture_output=True, text=True, check=True)
    if b"PRIVATE KEY" in found or "folder/key" in listed.stdout:
        raise Broken("a file of the host is in the image")


@attack("a file that is saved has no end")
def test_a_file_that_grows_while_it_is_saved(cluster: Cluster, faults: Faults) -> None:
    """Promise: saving ends, whatever the container's programs do meanwhile, and is whole."""
    room = cluster.room("alice")
    grow = "dd if=/dev/zero of=/log bs=1M count=64 2>/dev/null; (while :; do echo more; done >>/log) & true"
    with held(faults, grow, room=room) as step:
        done = saved(cluster, "alice", step, str(room / "x.sqsh"), timeout=100)
    if not done or (room / "x.sqsh").read_bytes()[:4] != b"hsqs":
        raise Broken("a file that grows keeps its container from being saved")


@attack("squashfuse stays in pioletd's control group")
def test_the_keeper_is_outside_of_the_jobs_limits(cluster: Cluster, confined: Faults) -> None:
    """Promise: what saves a container has the job's memory, devices and processors, and ends with the step."""
    room = cluster.room("alice")
    key = f'save = "{room}/x.sqsh"\n'
    with held(confined, "sleep 655 & true", key, room):
        wait_until(lambda: sleepers(confined, "655"))
        (task,) = sleepers(confined, "655")
        (keeper,) = keepers()
        own, step = groups_of(keeper), {n: p for n, p in groups_of(task).items() if n in CONTROLLERS}
        outside = [f"{name}: {own[name]}, not {path}" for name, path in step.items() if own[name] != path]
    if outside:
        raise Broken(f"the keeper is not in the step: {'; '.join(outside)}")
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), 10, "the end of the keeper")


@by_kernel("a process that has changed its user is not dumpable")
def test_the_keeper_is_traced_by_its_user(cluster: Cluster, faults: Faults) -> None:
    """Promise: the keeper, a child of root's, shows its user nothing of what it was forked with."""
    room = cluster.room("alice")
    with held(faults, "sleep 656 & true", f'save = "{room}/x.sqsh"\n', room):
        owners = [os.stat(f"/proc/{pid}/mem").st_uid for pid in keepers()]
    assert owners
    if any(owner != 0 for owner in owners):
        raise Broken("the keeper can be traced by its user")


def keepers() -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [int(place.name)] if (place / "comm").read_text() == "piolet-keeper\n" else []
    return found


@pytest.fixture(autouse=True)
def _alone(faults: Faults) -> Iterator[None]:
    yield
    faults.cancel_all()
