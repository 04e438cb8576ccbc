"""What a step changed, saved as an image: by `piolet env save` while it runs, and by `save` at its end."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.faults import Faults, end
from tests.cluster.nodes import Node
from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.waiting import wait_until

ALICE, BOB = "alice", "bob"
CHANGE = (
    "echo new >/opt/new; echo changed >/opt/there/changed; rm /opt/there/gone; rm -r /opt/whole; "
    "mkdir /opt/whole; echo only >/opt/whole/only; ln -s new /opt/link; ln /opt/new /opt/hard; chmod 4711 /opt/new"
)
LOOK = "cat /opt/new /opt/there/changed; ls /opt /opt/there /opt/whole; stat -c %a /opt/new; readlink /opt/link"
SEEN = (
    "new\nchanged\n/opt:\nhard\nlink\nnew\nthere\nwhole\n\n/opt/there:\nchanged\nstays\n\n/opt/whole:\nonly\n"
    "4711\nnew\n"
)


@pytest.fixture(scope="module")
def base(cluster: Cluster) -> str:
    """An image with files to change, and something to say of itself."""
    more = [
        *(oci.folder(f"opt{name}") for name in ("", "/there", "/whole")),
        *(oci.file(f"opt/{name}", b"old\n") for name in ("there/changed", "there/gone", "there/stays", "whole/old")),
    ]
    layer = busybox_layer(*more)
    return cluster.push("base", [layer], Env=["PATH=/bin", "OF_BASE=a b"], WorkingDir="/opt", Labels={"org.x": "1"})


@pytest.fixture
def edf(cluster: Cluster, base: str, room: Path) -> Path:
    return cluster.edf(ALICE, f'image = "{base}"\n', room)


@dataclass(frozen=True)
class Held:
    """A step of alice's that has changed something, and waits."""

    cluster: Cluster
    step: str
    room: Path

    def save(self, target: str, *options: str, user: str = ALICE, **env: str) -> Result:
        return self.cluster.run(user, "piolet", "env", "save", *options, self.step, target, cwd=self.room, env=env)


@contextlib.contextmanager
def held(cluster: Cluster, edf: Path, *options: str, change: str = CHANGE) -> Iterator[Held]:
    script = f'{change}; test "$SLURM_PROCID" != 0 || echo $SLURM_JOB_ID.$SLURM_STEP_ID; read line'
    words = ["srun", f"--environment={edf}", *options, "--input=all", "sh", "-c", script]
    srun = cluster.start(ALICE, *words, cwd=edf.parent)
    assert srun.stdout is not None
    step = srun.stdout.readline().strip()
    try:
        assert step.endswith(".0"), end(srun)
        yield Held(cluster, step, edf.parent)
    finally:
        cluster.run(ALICE, "scancel", step.partition(".")[0])
        with contextlib.suppress(ValueError):
            end(srun)


def image(cluster: Cluster, name: str, *command: str, room: Path) -> str:
    """Return what a command says in a step of an image alone."""
    done = cluster.srun(ALICE, f"image:{name}", *command, cwd=room)
    assert "are not known" not in done.err
    return done.good()


@pytest.mark.parametrize("key", ["", "remap_root = true\n"])
def test_a_running_step_becomes_a_file(cluster: Cluster, base: str, room: Path, key: str) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\n{key}', room)
    more = "; touch /opt/there/closed; chmod 0 /opt/there/closed; mkfifo /opt/fifo" if key else ""
    with held(cluster, edf, change=CHANGE + more) as step:
        done = step.save("./x.sqsh")
        assert re.search(r"step \d+\.0 is saved: .*/x\.sqsh \(", done.good())
        if more:
            assert "1 device nodes, FIFOs and sockets left out" in done.out
        again = step.save("./x.sqsh")
        assert again.status == 1 and "x.sqsh is there already\nhint: --force" in again.err
        assert step.save("./x.sqsh", "--force", "-Q").err == ""
    file = room / "x.sqsh"
    assert file.stat().st_uid == pwd.getpwnam(ALICE).pw_uid and stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [name for name in os.listdir(room) if "x.sqsh" in name] == ["x.sqsh"]
    seen = SEEN.replace("changed\nstays", "changed\nclosed\nstays") if more else SEEN
    assert image(cluster, "./x.sqsh", "sh", "-c", LOOK, room=room) == seen
    said = image(cluster, "./x.sqsh", "sh", "-c", "pwd; echo $OF_BASE; ls /run", room=room)
    assert said.splitlines()[:2] == ["/opt", "a b"] and "piolet" not in said.split()


def test_a_running_step_becomes_an_image_of_the_store(cluster: Cluster, edf: Path, room: Path) -> None:
    with held(cluster, edf) as step:
        assert re.fullmatch(r"localhost/kept:1 sha256:[0-9a-f]{64}\n", step.save("kept:1").good())
    assert image(cluster, "localhost/kept:1", "sh", "-c", LOOK, room=room) == SEEN
    assert image(cluster, "localhost/kept:1", "sh", "-c", "pwd; echo $OF_BASE", room=room) == "/opt\na b\n"
    assert not list(Path(pwd.getpwnam(ALICE).pw_dir).glob(".piolet-save-*"))
    # It is alice's alone, like an import.
    done = cluster.srun(BOB, "image:localhost/kept:1", "true", cwd=cluster.room(BOB))
    assert done.status != 0 and "there is no image localhost/kept:1" in done.err
    # And the next one can be made of it.
    again = cluster.edf(ALICE, 'image = "localhost/kept:1"\n', room, "again.toml")
    with held(cluster, again, change="echo more >/opt/more; rm /opt/hard") as step:
        step.save("kept:2").good()
    text = image(cluster, "localhost/kept:2", "sh", "-c", "cat /opt/more; ls /opt; echo $OF_BASE", room=room)
    assert text == "more\nlink\nmore\nnew\nthere\nwhole\na b\n"


def test_into_a_store_of_one_s_own(cluster: Cluster, edf: Path, room: Path) -> None:
    own = {"EDF_IMAGESTORE": str(room / "images")}
    with held(cluster, edf) as step:
        step.save("mine:1", **own).good()
    assert "localhost/mine:1" in cluster.run(ALICE, "piolet", "image", "list", env=own).good()
    assert cluster.srun(ALICE, "image:localhost/mine:1", "cat", "/opt/new", cwd=room, env=own).good() == "new\n"


def test_a_node_is_chosen(cluster: Cluster, edf: Path, room: Path) -> None:
    with held(cluster, edf, "-N2", "-n2", change="echo $SLURMD_NODENAME >/opt/where") as step:
        second = cluster.run(ALICE, "squeue", "-h", "-o", "%N").good()
        assert "[1-2]" in second
        assert "-w NODE chooses another" in step.save("first.sqsh").err
        step.save("second.sqsh", "-w", "node2").good()
        assert "is not on node9" in step.save("third.sqsh", "-w", "node9").err
    assert image(cluster, "./first.sqsh", "cat", "/opt/where", room=room) == "node1\n"
    assert image(cluster, "./second.sqsh", "cat", "/opt/where", room=room) == "node2\n"


def test_from_the_job_s_own_script(cluster: Cluster, base: str, room: Path) -> None:
    """On the step's node no step is started for it."""
    edf = cluster.edf(ALICE, f'image = "{base}"\nmounts = ["{room}"]\n', room)
    script = (
        f"srun --environment={edf} sh -c 'echo new >/opt/new; touch {room}/up; sleep 60' &\n"
        f"until [ -e {room}/up ]; do sleep 0.1; done\n"
        f"piolet env save $SLURM_JOB_ID.0 {room}/x.sqsh\n"
        "scancel $SLURM_JOB_ID.0\nwait\n"
    )
    said = cluster.sbatch(ALICE, script, cwd=room)
    assert "is saved: " in said, said
    assert image(cluster, "./x.sqsh", "cat", "/opt/new", room=room) == "new\n"


def test_a_file_of_a_user_s_own_is_a_base_as_well(cluster: Cluster, edf: Path, room: Path) -> None:
    with held(cluster, edf) as step:
        step.save("one.sqsh").good()
    again = cluster.edf(ALICE, f'image = "{room}/one.sqsh"\n', room, "again.toml")
    with held(cluster, again, change="rm -r /opt/whole; echo 2 >/opt/two") as step:
        step.save("two.sqsh").good()
    text = image(cluster, "./two.sqsh", "sh", "-c", "ls /opt; pwd; echo $OF_BASE", room=room)
    assert text == "hard\nlink\nnew\nthere\ntwo\n/opt\na b\n"


def test_a_step_is_saved_by_its_user_alone(cluster: Cluster, edf: Path) -> None:
    with held(cluster, edf) as step:
        done = step.save("/tmp/bobs.sqsh", user=BOB)
        assert done.status == 1 and "is another user's" in done.err
        assert not Path("/tmp/bobs.sqsh").exists()


def test_nothing_to_save(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nwritable = false\n', room)
    with held(cluster, edf, change=":") as step:
        done = step.save("x.sqsh")
        assert done.status == 1 and "there is nothing to save: the container's root is read-only" in done.err
    done = step.save("x.sqsh")
    assert done.status == 1 and "piolet: error: " in done.err and "Traceback" not in done.err
    assert not (room / "x.sqsh").exists()


@pytest.mark.parametrize("wanted", ["./x.tar", "a@sha256:" + "0" * 64, "/nowhere/at/all/x.sqsh"])
def test_targets_that_are_none(cluster: Cluster, edf: Path, wanted: str) -> None:
    with held(cluster, edf, change=":") as step:
        done = step.save(wanted)
        assert done.status == 1 and "piolet: error: " in done.err and "Traceback" not in done.err


def test_a_restarted_daemon_is_not_asked(faults: Faults, edf: Path, room: Path) -> None:
    with held(faults.cluster, edf, "-w", "node1") as step:
        faults.cluster.tool("stop-pioletd", "node1")
        faults.cluster.tool("start-pioletd", "node1")
        step.save("x.sqsh").good()
    assert image(faults.cluster, "./x.sqsh", "cat", "/opt/new", room=room) == "new\n"


# -- at a step's end


def test_save_at_the_end(node: Node, base: str, room: Path) -> None:
    text = f'image = "{base}"\nsave = "{room}/{node.runtime}-${{SLURM_JOB_ID}}.sqsh"\n'
    done = node.srun(
        text, "-n3", "sh", "-c", f"test $SLURM_PROCID != 0 || {{ {CHANGE}; echo out; }}; exit 3", room=room
    )
    assert done.status == 3 and done.out == "out\n"
    assert len(re.findall(r"piolet: the container of step \d+\.0 is saved: ", done.err)) == 1, done.err
    (file,) = room.glob(f"{node.runtime}-*.sqsh")
    assert re.fullmatch(rf"{node.runtime}-\d+\.sqsh", file.name)
    assert image(node.cluster, str(file), "sh", "-c", LOOK, room=room) == SEEN


def test_save_as_a_name_at_the_end_of_the_batch_script(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nscript = "inside"\nsave = "batched:1"\n', room)
    said = cluster.sbatch(ALICE, f"#!/bin/sh\n{CHANGE}\n", f"--environment={edf}", cwd=room)
    assert re.search(r"container of step \d+\.batch is saved: localhost/batched:1", said)
    assert image(cluster, "localhost/batched:1", "sh", "-c", LOOK, room=room) == SEEN


def test_a_step_that_is_cancelled_is_saved(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nsave = "{room}/x.sqsh"\n', room)
    with held(cluster, edf):
        pass
    wait_until((room / "x.sqsh").exists)
    assert image(cluster, "./x.sqsh", "cat", "/opt/new", room=room) == "new\n"


@pytest.mark.parametrize("user_root", ["", "remap_root = true\n"])
def test_a_failure_is_told_and_changes_nothing(cluster: Cluster, base: str, room: Path, user_root: str) -> None:
    (room / "closed").mkdir()
    cluster.give(ALICE, room / "closed")
    text = f'image = "{base}"\nmounts = ["{room}"]\nsave = "{room}/closed/x.sqsh"\n{user_root}'
    edf = cluster.edf(ALICE, text, room)
    done = cluster.srun(ALICE, edf, "sh", "-c", f"chmod 500 {room}/closed; exit 4", cwd=room)
    assert done.status == 4
    assert re.search(r"piolet: warning: the container was not saved: cannot write .*/x\.sqsh: .*\nhint: ", done.err)
    assert os.listdir(room / "closed") == []


def test_what_came_to_be_meanwhile_stays(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nmounts = ["{room}"]\nsave = "{room}/x.sqsh"\n', room)
    done = cluster.srun(ALICE, edf, "sh", "-c", f"echo mine >{room}/x.sqsh", cwd=room)
    assert done.status == 0 and "x.sqsh is there already\nhint: name another file\n" in done.err
    assert (room / "x.sqsh").read_text() == "mine\n"


def test_a_keeper_that_is_killed_is_told(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nsave = "{room}/x.sqsh"\n', room)
    done = cluster.srun(ALICE, edf, "sh", "-c", "kill -9 $(cat /run/piolet/shared/keeper); exit 5", cwd=room)
    assert done.status == 5 and "the container was not saved: the process that does it was ended" in done.err
    assert not (room / "x.sqsh").exists()


def test_a_keeper_ends_with_its_step(cluster: Cluster, base: str, room: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{base}"\nsave = "{room}/x.sqsh"\n', room)
    pid = cluster.srun(ALICE, edf, "cat", "/run/piolet/shared/keeper", cwd=room).good().strip()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    # Also where nobody asks: a task that is killed before its end.
    (room / "x.sqsh").unlink()
    done = cluster.srun(ALICE, edf, "-N2", "-n2", "sh", "-c", "cat /run/piolet/shared/keeper", cwd=room)
    for pid in done.good().split():
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


def test_an_image_without_a_shell_says_so(cluster: Cluster, room: Path) -> None:
    reference = cluster.push("bare", [[oci.folder("bin"), oci.file("bin/x", b"", 0o755)]])
    for key in ('save = "./x.sqsh"\n', '[startup]\ncommands = "x"\n'):
        edf = cluster.edf(ALICE, f'image = "{reference}"\n{key}', room)
        done = cluster.srun(ALICE, edf, "/bin/x", cwd=room)
        assert done.status != 0 and "the image has no /bin/sh, which [startup] and save need" in done.err


def test_job_s_sruns_and_environments_of_jobs(cluster: Cluster, base: str, room: Path) -> None:
    """The same again, by `@JOB`, starts, and saves nothing."""
    edf = cluster.edf(ALICE, f'image = "{base}"\nsave = "{room}/x.sqsh"\n', room)
    job = cluster.srun(ALICE, edf, "sh", "-c", "echo $SLURM_JOB_ID.$SLURM_STEP_ID", cwd=room).good().strip()
    done = cluster.srun(ALICE, f"@{job}", "echo", "again", cwd=room)
    assert done.good() == "again\n" and "saved" not in done.err


def test_files_of_podman_and_enroot_see_what_is_saved(cluster: Cluster, edf: Path, room: Path) -> None:
    """A SquashFS file has all of the root, in enroot's form: other tools read it."""
    with held(cluster, edf) as step:
        step.save("x.sqsh").good()
    words = ["unsquashfs", "-cat", str(room / "x.sqsh"), "etc/environment", "etc/rc"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "OF_BASE=a b\n" in listed.stdout and 'cd "/opt"' in listed.stdout
