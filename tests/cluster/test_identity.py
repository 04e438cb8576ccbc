"""The user is themself in a container, has what they may have, and gets nothing beyond: names, groups, rights."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import BUSYBOX, Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.registry import Registry, auth_file
from tools.cluster.state import load

ALICE, BOB = "alice", "bob"


def test_the_user_is_the_same_person(cluster: Cluster) -> None:
    code = (
        "import os, pwd, grp\n"
        "user = pwd.getpwuid(os.getuid())\n"
        "print(user.pw_name, user.pw_uid, user.pw_gid, user.pw_dir, os.environ['HOME'], os.environ['USER'])\n"
        "print(pwd.getpwnam(user.pw_name).pw_uid, os.getresuid(), os.getresgid(), sorted(os.getgroups()))\n"
        "print(sorted(grp.getgrgid(number).gr_name for number in os.getgroups()))\n"
        "print(open('/proc/self/loginuid').read())\n"
    )
    for user in (ALICE, BOB):
        bare, inside = cluster.pair(user, Path("demo"), "python3", "-c", code)
        assert inside.good() == bare.good()
        done = cluster.srun(user, "demo", "sh", "-c", "id; whoami; id -Gn")
        expected = subprocess.run(["id", user], capture_output=True, text=True, check=True).stdout
        names = subprocess.run(["id", "-Gn", user], capture_output=True, text=True, check=True).stdout
        said = done.good().splitlines()
        assert said[0].split()[:2] == expected.split()[:2]
        assert said[1] == user
        assert sorted(said[2].split()) == sorted(names.split())


@pytest.mark.kernels
def test_home_is_there_and_their_own(cluster: Cluster, tiny_edf: Path) -> None:
    home = Path(pwd.getpwnam(ALICE).pw_dir)
    mark = home / f".piolet-test-{os.getpid()}"
    script = f"cd && pwd && echo from inside > {mark} && ls -ld $HOME | cut -d' ' -f1 && echo ~"
    try:
        done = cluster.srun(ALICE, tiny_edf, "sh", "-c", script)
        assert done.good().splitlines()[0] == done.out.splitlines()[2] == str(home)
        assert mark.read_text() == "from inside\n"
        assert mark.stat().st_uid == pwd.getpwnam(ALICE).pw_uid
    finally:
        mark.unlink(missing_ok=True)


def test_entries_of_the_image_give_way_to_the_users_own(cluster: Cluster) -> None:
    user = pwd.getpwnam(ALICE)
    passwd = f"root:x:0:0:root:/root:/bin/sh\nalice:x:1:1:impostor:/:/bin/false\nother:x:{user.pw_uid}:7:::\n"
    group = f"root:x:0:\npioletlab:x:3:\nwrong:x:{user.pw_gid}:\nkept:x:99:\nodd line\n"
    files = [
        oci.file("etc/passwd", (passwd + "kept:x:77:77:::\n").encode()),
        oci.file("etc/group", group.encode(), 0o600),
    ]
    image = cluster.push("passwd", [busybox_layer(), files], Env=["PATH=/bin"])
    edf = cluster.edf(ALICE, f'image = "{image}"\n')
    done = cluster.srun(
        ALICE, edf, "sh", "-c", "whoami; id -u alice; id -un; id -gn; cat /etc/passwd /etc/group; ls -n /etc"
    )
    said = done.good().splitlines()
    assert said[:4] == [ALICE, str(user.pw_uid), ALICE, "alice"]
    assert f"alice:x:{user.pw_uid}:{user.pw_gid}:{user.pw_gecos}:{user.pw_dir}:{user.pw_shell}" in said
    assert "kept:x:77:77:::" in said
    assert "kept:x:99:" in said
    assert not [line for line in said if "impostor" in line or line.startswith(("other:", "wrong:", "pioletlab:x:3:"))]


@pytest.fixture
def shared(cluster: Cluster) -> Path:
    """A directory of root with a file for each group: the supplementary ones are what makes them readable."""
    room = cluster.room(ALICE)
    os.chown(room, 0, 0)
    for group in ("pioletlab", "alicegrp"):
        path = room / group
        path.write_text(f"for {group}\n")
        path.chmod(0o640)
        subprocess.run(["chgrp", group, str(path)], check=True)
        (room / f"{group}.d").mkdir(mode=0o770)
        (room / f"{group}.d").chmod(0o2770)
        subprocess.run(["chgrp", group, str(room / f"{group}.d")], check=True)
    return room


@pytest.mark.parametrize("user", [ALICE, BOB])
@pytest.mark.kernels
def test_a_group_that_takes_access_away_keeps_doing_so(cluster: Cluster, tiny: str, shared: Path, user: str) -> None:
    (shared / "pioletlab").chmod(0o604)
    (shared / "alicegrp").chmod(0o604)
    edf = cluster.edf(user, f'image = "{tiny}"\nmounts = ["{shared}:/shared"]\n')
    done = cluster.srun(user, edf, "cat", "/shared/pioletlab", "/shared/alicegrp")
    assert done.out == ("" if user == ALICE else "for alicegrp\n")


@pytest.mark.parametrize("user", [ALICE, BOB])
@pytest.mark.kernels
def test_supplementary_groups_keep_their_access(cluster: Cluster, tiny: str, shared: Path, user: str) -> None:
    edf = cluster.edf(user, f'image = "{tiny}"\nmounts = ["{shared}:/shared"]\n')
    script = (
        "cat /shared/pioletlab; cat /shared/alicegrp 2>/dev/null || echo denied; touch /shared/pioletlab.d/new;"
        " stat -c %G /shared/pioletlab.d/new; touch /shared/alicegrp.d/new 2>/dev/null || echo denied"
    )
    out = cluster.srun(user, edf, "sh", "-c", script).good()
    second, last = ("for alicegrp\n", "") if user == ALICE else ("denied\n", "denied\n")
    assert out == f"for pioletlab\n{second}pioletlab\n{last}"
    (shared / "pioletlab.d" / "new").unlink()


@pytest.mark.kernels
def test_no_capability_is_left(cluster: Cluster, tiny_edf: Path) -> None:
    out = cluster.srun(ALICE, tiny_edf, "grep", "-E", "^(Cap|NoNewPrivs)", "/proc/self/status").good()
    fields = dict(line.split() for line in out.splitlines())
    assert fields.pop("NoNewPrivs:") == "1"
    assert set(fields) == {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"}
    assert set(fields.values()) == {"0" * 16}


def test_root_s_steps_have_no_environment(cluster: Cluster, tiny_edf: Path) -> None:
    """The server, which has no privileges, decides what is done in one: that must never be done as root."""
    env = {"PATH": "/usr/bin:/bin", "SLURM_CONF": str(cluster.layout.slurm_conf)}
    command = ["srun", f"--environment={tiny_edf}", "id"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode != 0 and done.stdout == ""
    assert "a step of root has no environment\nhint: start it as another user" in done.stderr, done.stderr


FORBIDDEN = """
mount -t tmpfs none /mnt; umount /tmp; chroot / true; hostname other; mknod /x c 1 3; chown 0 /marker
su -c id; ln -s /proc/1/root /r && ls /r; kill -0 1; nsenter -t 1 -m true; unshare -m true
dd if=/dev/mem of=/dev/null bs=1 count=1; echo 1 > /proc/sys/kernel/sysrq; cat /etc/shadow
"""


@pytest.mark.kernels
def test_what_needs_a_right_fails(cluster: Cluster, tiny_edf: Path) -> None:
    script = "".join(
        f"({line.strip()}) >/dev/null 2>&1 && echo could: '{line.strip()}'\n"
        for line in FORBIDDEN.replace("\n", ";").split(";")
        if line.strip()
    )
    assert cluster.srun(ALICE, tiny_edf, "sh", "-c", script + "echo tried").good() == "tried\n"


@pytest.mark.kernels
def test_a_setuid_program_of_the_image_gives_nothing(cluster: Cluster) -> None:
    programs = [
        oci.file("bin/rootid", BUSYBOX.read_bytes(), 0o4755, uid=0, gid=0),
        oci.file("bin/groupid", BUSYBOX.read_bytes(), 0o6755, uid=0, gid=0),
    ]
    # busybox acts by its name: these are `id` by way of links to the privileged copies.
    links = [
        oci.folder("suid"),
        oci.hardlink("suid/id", "bin/rootid"),
        oci.folder("both"),
        oci.hardlink("both/id", "bin/groupid"),
    ]
    image = cluster.push("setuid", [busybox_layer(*programs, *links)], Env=["PATH=/bin"])
    edf = cluster.edf(ALICE, f'image = "{image}"\n')
    user = pwd.getpwnam(ALICE)
    script = "for program in /suid/id /both/id; do stat -c %A $program; $program -u; $program -g; $program -ru; done"
    script += "; cp /bin/busybox /own; chmod 4755 /own; ln /own /id; /id -u"
    script += "; grep ' / ' /proc/self/mountinfo | grep -c nosuid"
    said = cluster.srun(ALICE, edf, "sh", "-c", script).good().splitlines()
    own = [str(user.pw_uid), str(user.pw_gid), str(user.pw_uid)]
    assert said[1:4] == own
    assert said[5:8] == own
    assert said[8] == str(user.pw_uid)
    assert int(said[9]) >= 1


def refused(done: Result, *words: str) -> None:
    """Check that a step did not run, and that a clear sentence says why."""
    assert done.status != 0
    assert done.out == ""
    assert "piolet: error: " in done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


@pytest.mark.kernels
def test_a_directory_that_the_user_cannot_read_is_not_mounted(cluster: Cluster, tiny: str) -> None:
    secret = cluster.room(BOB)
    (secret / "file").write_text("secret\n")
    secret.chmod(0o700)
    for text in (f'["{secret}:/x"]', f'["{secret}/file:/x"]', '["/etc/shadow:/x"]'):
        edf = cluster.edf(ALICE, f'image = "{tiny}"\nmounts = {text}\n')
        refused(cluster.srun(ALICE, edf, "cat", "/x"), "cannot", str(edf), "hint: ")
    edf = cluster.edf(BOB, f'image = "{tiny}"\nmounts = ["{secret}:/x"]\n')
    assert cluster.srun(BOB, edf, "cat", "/x/file").good() == "secret\n"


def test_to_enter_a_directory_is_enough_to_mount_it(cluster: Cluster, tiny: str) -> None:
    room = cluster.room(BOB)
    (room / "file").write_text("known by name\n")
    room.chmod(0o711)
    edf = cluster.edf(ALICE, f'image = "{tiny}"\nmounts = ["{room}:/x"]\n')
    done = cluster.srun(ALICE, edf, "sh", "-c", "cat /x/file; ls /x")
    assert done.out == "known by name\n"
    assert "Permission denied" in done.err


@pytest.fixture
def hidden(cluster: Cluster) -> Iterator[Path]:
    """A directory that everybody may read, except on node2, where another of mode 0700 is mounted over it."""
    room = cluster.room(ALICE)
    below = cluster.room(BOB)
    below.chmod(0o700)
    state = load(cluster.layout.state_file)
    assert state is not None
    # A real node's daemon sees what is mounted after its start; here nothing propagates, so both are told.
    places = [state.find(name) for name in ("slurmd-node2", "pioletd-node2")]
    inside = [["nsenter", f"--target={place.pid}", "--mount", "--"] for place in places if place is not None]
    assert len(inside) == 2
    for enter in inside:
        subprocess.run([*enter, "mount", "--bind", str(below), str(room)], check=True)
    yield room
    for enter in inside:
        subprocess.run([*enter, "umount", str(room)], check=True)


def test_a_directory_that_is_closed_on_one_node_fails_the_step(cluster: Cluster, tiny: str, hidden: Path) -> None:
    edf = cluster.edf(ALICE, f'image = "{tiny}"\nmounts = ["{hidden}:/x"]\n')
    assert cluster.srun(ALICE, edf, "-w", "node1", "ls", "/x").good() == ""
    done = cluster.srun(ALICE, edf, "-w", "node2", "ls", "/x")
    refused(done, "node2", f"cannot mount {hidden} at /x: Permission denied", "hint: ")
    both = cluster.srun(ALICE, edf, "-w", "node[1-2]", "-N2", "ls", "/x")
    assert both.status != 0
    nodes = cluster.run(ALICE, "sinfo", "-h", "-o", "%T").good()
    assert "drain" not in nodes


def test_a_container_of_somebody_else_stays_closed(cluster: Cluster, tiny_edf: Path) -> None:
    words = [
        "srun",
        "-w",
        "node1",
        f"--environment={tiny_edf}",
        "sh",
        "-c",
        "echo secret > /mine; echo $SLURM_TASK_PID; cat",
    ]
    process = cluster.start(ALICE, *words)
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    try:
        script = (
            f"cat /proc/{pid}/root/mine; ls /proc/{pid}/root/; ls /proc/{pid}/fd; cat /proc/{pid}/environ;"
            f" readlink /proc/{pid}/ns/mnt; nsenter -t {pid} -U -m true && echo joined; kill -0 {pid} && echo killed"
        )
        for edf in (None, tiny_edf):
            done = cluster.srun(BOB, edf, "-w", "node1", "sh", "-c", script)
            assert done.out == "", done.out
        own = cluster.srun(ALICE, None, "-w", "node1", "--overlap", "ls", f"/proc/{pid}/cwd", timeout=20)
        assert "No such" not in own.err
    finally:
        process.communicate("", timeout=20)


def test_the_world_outside_looks_as_on_the_node(cluster: Cluster) -> None:
    script = (
        "hostname; cat /etc/resolv.conf /etc/hosts; date +%Z; cd /proc/self/ns; readlink pid net uts"
        " ipc cgroup; cat /proc/self/cgroup; ls -d /proc/$$ | wc -l; cd /tmp; ls -di /tmp /dev/shm;"
        " stat -c %a /tmp /dev/shm; ls /dev | grep -v ^loop | sort | md5sum; ls /sys | md5sum"
    )
    bare, inside = cluster.pair(ALICE, Path("demo"), "-w", "node3", "sh", "-c", script)
    strip = [line for line in inside.good().splitlines() if "/job_" not in line]
    assert strip == [line for line in bare.good().splitlines() if "/job_" not in line]
    assert strip[0] == "node3"


def test_tasks_of_a_node_share_tmp_and_shm(cluster: Cluster, tiny_edf: Path) -> None:
    name = f"piolet-test-{os.getpid()}"
    script = (
        f"for place in /tmp /dev/shm /; do echo $SLURM_PROCID > $place/{name}-$SLURM_PROCID; done; "
        f"for place in /tmp /dev/shm /; do for task in 0 1; do for try in $(seq 200); do "
        f"[ -s $place/{name}-$task ] && break; sleep 0.05; done; cat $place/{name}-$task; done; done"
    )
    try:
        out = cluster.srun(ALICE, tiny_edf, "-n2", "-N1", "--label", "sh", "-c", script).good()
        for task in range(2):
            assert [line[3:] for line in out.splitlines() if line.startswith(f"{task}: ")] == ["0", "1"] * 3
        assert cluster.srun(ALICE, None, "sh", "-c", f"cat /tmp/{name}-0 /dev/shm/{name}-1").good() == "0\n1\n"
    finally:
        for place in ("/tmp", "/dev/shm"):
            for task in range(2):
                Path(place, f"{name}-{task}").unlink(missing_ok=True)


def forge(edf: Path, definition: str) -> dict[str, str]:
    """Return the variables with which a user hands the nodes a definition that no `piolet` command has seen."""
    return {
        "SLURM_PIOLET_ENVIRONMENT": definition,
        "SLURM_PIOLET_REQUEST": str(edf),
        "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment": str(edf),
    }


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not JSON": lambda d: "{",
    "not a table": lambda d: [],
    "a newer version": lambda d: d | {"version": 999},
    "unknown keys": lambda d: d | {"runtime": "crun", "crun": "/bin/sh"},
    "a digest with dots": lambda d: d | {"image": d["image"] | {"digest": "sha256:../../../../../etc/passwd"}},
    "a digest that is not there": lambda d: d | {"image": d["image"] | {"digest": "sha256:" + "0" * 64}},
    "no digest": lambda d: d | {"image": d["image"] | {"digest": None}},
    "another's file": lambda d: d | {"image": d["image"] | {"store": "user", "path": "/etc/shadow", "digest": None}},
    "a FIFO": lambda d: d | {"image": d["image"] | {"store": "user", "path": "FIFO", "digest": None}},
    "a mount of another's": lambda d: d | {"mounts": [mount("/root", "/x")]},
    "a mount onto the root": lambda d: d | {"mounts": [mount("/tmp", "/")]},
    "a mount above the root": lambda d: d | {"mounts": [mount("/tmp", "/../../x")]},
    "a relative mount": lambda d: d | {"mounts": [mount("tmp", "x")]},
    "a kind of mount": lambda d: d | {"mounts": [mount("proc", "/x") | {"kind": "proc"}]},
    "a variable with a line end": lambda d: d | {"set_env": {"A=B\n": "x"}},
    "a long directory": lambda d: d | {"workdir": "/" + "x" * 5000},
}


def mount(source: str, destination: str) -> dict[str, Any]:
    return {"source": source, "destination": destination, "kind": "bind", "flags": []}


def test_a_forged_definition_gets_nothing_that_its_author_has_not(cluster: Cluster, tiny_edf: Path) -> None:
    room = cluster.room(ALICE)
    os.mkfifo(room / "fifo")
    cluster.give(ALICE, room / "fifo")
    honest = json.loads(cluster.run(ALICE, "piolet", "env", "render", tiny_edf).good())
    command = ("-w", "node3", "sh", "-c", "cat /marker; ls /x; echo $SLURM_JOB_ID")
    job = cluster.srun(ALICE, None, *command, env=forge(tiny_edf, json.dumps(honest))).good().splitlines()
    assert job[0] == "in the image"

    def attempt(name: str) -> Result:
        made = FORGERIES[name](honest)
        text = made if isinstance(made, str) else json.dumps(made).replace("FIFO", str(room / "fifo"))
        return cluster.srun(ALICE, None, *command, env=forge(tiny_edf, text))

    with ThreadPoolExecutor(4) as pool:
        for name, done in zip(FORGERIES, pool.map(attempt, FORGERIES), strict=True):
            assert done.status != 0, name
            assert done.out == "", f"{name}: {done.out}"
            assert "piolet: error: node node3: " in done.err, f"{name}: {done.err}"
            assert "Traceback" not in done.err, name
    assert cluster.srun(BOB, tiny_edf, "-w", "node3", "cat", "/marker").good() == "in the image\n"
    assert "drain" not in cluster.run(ALICE, "sinfo", "-h", "-o", "%T").good()


@pytest.fixture
def guarded(cluster: Cluster) -> Iterator[Registry]:
    """A registry that wants a password."""
    running = Registry(cluster.room(ALICE) / "guarded", {"alice": "secret-a", "bob": "secret-b"})
    yield running
    running.stop()


@pytest.mark.kernels
def test_a_private_image_is_for_who_pulled_it(cluster: Cluster, guarded: Registry) -> None:
    folder = cluster.room(ALICE)
    # Unlike any other: with an image of the same digest bob would have what alice has.
    layer = [oci.file("marker", b"private\n"), oci.file("once", os.urandom(16))]
    oci.build(folder / "image", [busybox_layer(), layer], settings={"Env": ["PATH=/bin"]})
    reference = guarded.push(folder / "image", "private/thing:1", "alice")
    edf = cluster.edf(ALICE, f'image = "{reference}"\n')
    login = auth_file(folder / "auth.json", guarded.address, "alice", "secret-a")
    cluster.give(ALICE, login)

    nobody = cluster.srun(ALICE, edf, "cat", "/marker")
    refused(nobody, "private/thing")
    alice = {"REGISTRY_AUTH_FILE": str(login)}
    assert cluster.srun(ALICE, edf, "cat", "/marker", env=alice).good() == "private\n"
    definition = cluster.run(ALICE, "piolet", "env", "render", edf, env=alice).good()
    refused(cluster.srun(BOB, edf, "cat", "/marker"), "private/thing")

    # Bob forges what a submission hands to the nodes: the digest that alice's definition has.
    forged = forge(edf, definition.strip())
    assert cluster.srun(ALICE, None, "cat", "/marker", env=forged).good() == "private\n"
    done = cluster.srun(BOB, None, "cat", "/marker", env=forged)
    refused(done, "hint: ")
    # With credentials of his own he may.
    word = auth_file(cluster.room(BOB) / "auth.json", guarded.address, "bob", "secret-b")
    cluster.give(BOB, word)
    assert cluster.srun(BOB, edf, "cat", "/marker", env={"REGISTRY_AUTH_FILE": str(word)}).good() == "private\n"
