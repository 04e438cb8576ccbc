"""Images of the store in containers, by each way that a kernel may have: idmapped mount, device mapper, squashfuse.

The ways are forced by `[node] image_mounts` on node1; one that this kernel has not is skipped, by name. What other
kernels refuse is refused here by a filter of system calls.
"""

from __future__ import annotations

import contextlib
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.root import imagemounts
from piolet.node.root.imagemounts import DEVICE_MAPPER, FUSE, IDMAP, WAYS, Choice
from piolet.site.config import load

from tests.cluster.faults import Faults, assert_sentence
from tests.cluster.support import Cluster, busybox_layer
from tests.support import oci
from tests.support.oldstore import age, ids
from tests.support.waiting import wait_until

NODE = "node1"
SIMULATORS = Path(__file__).parents[1] / "simulators"
PYTHON = ("/usr/bin/python3", "-I")
# Each kind of change to what the image brought, as the container's overlay copies it up.
CHANGES = """
set -e
stat -c '%u:%g %n' / /etc /etc/passwd /etc/kept /bin/busybox
touch /etc/new
echo more >>/etc/kept
mkdir /etc/dir
chmod 600 /etc/kept
mv /etc/kept /etc/moved
ln /etc/moved /etc/linked
rm /opt/full/gone
stat -c '%u:%g %a %n' /etc/new /etc/dir /etc/moved
cat /etc/linked
"""
# Each of these needs a mark of the overlay's: a directory that hides one of the image, or was one.
DIRECTORIES = """
set -e
rm -r /opt/full
mkdir /opt/full
ls -a /opt/full | wc -l
mv /opt/other /opt/moved
cat /opt/moved/deep/file
rm -r /opt/moved
rm -r /opt
ls / | grep -c opt || true
"""


@contextlib.contextmanager
def restarted(faults: Faults, settings: str = "", *before: str) -> Iterator[Choice]:
    """Restart node1's pioletd with other settings in [node], behind other words; yield what it found of its kernel."""
    path = faults.cluster.layout.piolet_toml
    text = path.read_text("utf-8")
    path.write_text(text.replace("[node]\n", f"[node]\n{settings}\n"), "utf-8")
    try:
        faults.restart_pioletd(NODE, *before)
    finally:
        path.write_text(text, "utf-8")
    try:
        state = str(faults.root(NODE) / "run/piolet")
        wait_until(lambda: imagemounts.noted(state) is not None, 20, "what pioletd found of its kernel")
        noted = imagemounts.noted(state)
        assert noted is not None
        yield noted
    finally:
        faults.restart_pioletd(NODE)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, faults: Faults) -> Iterator[str]:
    """A way that is forced on node1; skips where this kernel has it not."""
    with restarted(faults, f'image_mounts = "{request.param}"') as choice:
        if choice.way != request.param:
            pytest.skip(choice.describe())
        yield request.param


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> str:
    """An image with files of several owners."""
    files = [
        oci.file("etc/kept", b"kept\n", 0o644, uid=0, gid=0),
        oci.file("opt/full/gone", b"", 0o600, uid=33, gid=44),
        oci.file("opt/other/deep/file", b"deep\n", 0o640, uid=7, gid=7),
        oci.file("opt/secret", b"of root in the image\n", 0o600, uid=0, gid=0),
        oci.file("etc/passwd", b""),
    ]
    return cluster.push("changes", [busybox_layer(), files], Env=["PATH=/bin"])


def views(faults: Faults) -> list[str]:
    """Return the devices of device mapper that node1 has made."""
    names = []
    for path in Path("/sys/block").glob("dm-*/dm/name"):
        with contextlib.suppress(OSError):  # it goes while it is looked at
            names.append(path.read_text().strip())
    return [name for name in names if name.startswith(f"piolet-view-{NODE}.")]


def served(faults: Faults) -> list[str]:
    """Return the users for whom a squashfuse runs."""
    return [pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name for pid in faults.tasks("squashfuse")]


@pytest.mark.kernels
@pytest.mark.parametrize("user", ["alice", "carol"])
def test_all_files_of_an_image_are_the_users_to_change(faults: Faults, image: str, way: str, user: str) -> None:
    own = pwd.getpwnam(user)
    assert user != "carol" or own.pw_uid != own.pw_gid
    edf = faults.cluster.edf(user, f'image = "{image}"\n')
    said = faults.srun(user, "-w", NODE, "sh", "-c", CHANGES, edf=edf).good().splitlines()
    ids = f"{own.pw_uid}:{own.pw_gid}"
    assert said == [
        *(f"{ids} {path}" for path in ("/", "/etc", "/etc/passwd", "/etc/kept", "/bin/busybox")),
        f"{ids} 644 /etc/new",
        f"{ids} 755 /etc/dir",
        f"{ids} 600 /etc/moved",
        "kept",
        "more",
    ]


def assert_directories_can_be_removed(faults: Faults, image: str) -> None:
    edf = faults.cluster.edf("carol", f'image = "{image}"\n')
    assert faults.srun("carol", "-w", NODE, "sh", "-c", DIRECTORIES, edf=edf).good() == "2\ndeep\n0\n"


@pytest.mark.kernels
def test_directories_of_an_image_are_the_users_to_remove(faults: Faults, image: str, way: str) -> None:
    if way == FUSE and faults_of_a_tmpfs(faults):
        pytest.skip("a tmpfs of this kernel has no user.* attributes: not with squashfuse (docs/kernels.md)")
    assert_directories_can_be_removed(faults, image)


def faults_of_a_tmpfs(faults: Faults) -> bool:
    choice = imagemounts.noted(str(faults.root(NODE) / "run/piolet"))
    return choice is not None and choice.rooted


def test_a_kernel_whose_tmpfs_has_no_attributes_of_users(faults: Faults, image: str) -> None:
    """The overlay is root's then, and everything else is as before."""
    with restarted(faults, "", *PYTHON, str(SIMULATORS / "refuse_call.py"), "xattr", "EOPNOTSUPP") as choice:
        assert choice.rooted
        assert_directories_can_be_removed(faults, image)
        edf = faults.cluster.edf("carol", f'image = "{image}"\nwritable = false\n')
        done = faults.srun("carol", "-w", NODE, "sh", "-c", "cat /opt/secret; touch /etc/new; id -u", edf=edf)
        assert done.out == f"of root in the image\n{pwd.getpwnam('carol').pw_uid}\n", done
        assert "Read-only file system" in done.err
        edf = faults.cluster.edf("carol", f'image = "{image}"\n')
        assert faults.srun("carol", "-w", NODE, "sh", "-c", CHANGES, edf=edf).good().endswith("kept\nmore\n")
        mounts = faults.srun("carol", "-w", NODE, "cat", "/proc/self/mountinfo", edf=edf).good().splitlines()
        (root,) = [line for line in mounts if line.split()[4] == "/"]
        assert " - overlay piolet:" in root and "nosuid" in root and "nodev" in root


@pytest.mark.kernels
def test_an_image_of_an_older_release(faults: Faults, way: str) -> None:
    """Of one id: served by the way that can, to users whose gid is their uid and to others; and converted again."""
    cluster = faults.cluster
    files = [oci.file("etc/kept", b"kept\n"), oci.file("opt/full/gone"), oci.file("etc/passwd", b"")]
    image = cluster.push(f"older-{way}", [busybox_layer(), files], Env=["PATH=/bin"])
    digest = cluster.run("alice", "piolet", "image", "pull", image).good().split()[1]
    file = age(Path(load(cluster.layout.piolet_toml).images.store), digest)
    choice = imagemounts.noted(str(faults.root(NODE) / "run/piolet"))
    assert choice is not None and ids(file) == 1
    edfs = {user: cluster.edf(user, f'image = "{image}"\n') for user in ("alice", "carol")}
    for user, edf in edfs.items():
        done = faults.srun(user, "-w", NODE, "sh", "-c", CHANGES, edf=edf)
        if user == "carol" and way == DEVICE_MAPPER and not choice.fuse:
            assert_sentence(done, "it was converted by an earlier release", "piolet image prune --old-format")
        else:
            assert done.good().endswith("kept\nmore\n")
    # A step that runs while its image is converted again keeps what it has.
    words = ("srun", "-w", NODE, f"--environment={edfs['alice']}", "sh", "-c", "echo ready; read line; cat /etc/kept")
    step = cluster.start("alice", *words)
    try:
        assert step.stdout is not None and step.stdout.readline() == "ready\n"
        command = (cluster.layout.venv_bin / "piolet", "--config", cluster.layout.piolet_toml, "image", "prune")
        said = subprocess.run([*command, "--old-format"], capture_output=True, text=True, check=True, cwd="/").stdout
        assert image in said and "converted again" in said and ids(file) == 2
    finally:
        out, _ = step.communicate("\n", 30)
    assert out == "kept\n"
    for user, edf in edfs.items():
        assert faults.srun(user, "-w", NODE, "sh", "-c", CHANGES, edf=edf).good().endswith("kept\nmore\n")


@pytest.mark.kernels
def test_a_root_that_is_not_writable(faults: Faults, image: str, way: str) -> None:
    edf = faults.cluster.edf("carol", f'image = "{image}"\nwritable = false\n')
    done = faults.srun("carol", "-w", NODE, "sh", "-c", "cat /opt/secret; touch /etc/new", edf=edf)
    assert done.out == "of root in the image\n" and "Read-only file system" in done.err, done


@pytest.mark.kernels
def test_users_at_a_time_have_an_image_each_as_theirs(faults: Faults, image: str, way: str) -> None:
    script = "stat -c %u:%g /opt/secret; echo >/opt/secret; echo ready; read line"
    users = ("alice", "bob", "carol")
    steps = []
    for user in users:
        edf = faults.cluster.edf(user, f'image = "{image}"\n')
        words = ("srun", "-w", NODE, "--overlap", "--input=all", f"--environment={edf}", "sh", "-c", script)
        steps.append(faults.cluster.start(user, *words))
    try:
        for user, step in zip(users, steps, strict=True):
            own = pwd.getpwnam(user)
            assert step.stdout is not None
            assert step.stdout.readline() == f"{own.pw_uid}:{own.pw_gid}\n"
            assert step.stdout.readline() == "ready\n"
        if way == DEVICE_MAPPER:
            assert len(views(faults)) >= len(users)
        if way == FUSE:
            assert set(served(faults)) >= set(users)
    finally:
        for step in steps:
            step.communicate("\n", 30)
    assert [step.returncode for step in steps] == [0] * len(users)


@pytest.mark.kernels
@pytest.mark.parametrize("forced", WAYS)
def test_nothing_is_left_of_an_image(faults: Faults, image: str, forced: str) -> None:
    """Unmounted when it is idle; when pioletd is killed, a running step keeps what it has, and nothing else stays."""
    edf = faults.cluster.edf("carol", f'image = "{image}"\n')
    with restarted(faults, f'image_mounts = "{forced}"\nimage_idle_s = 1') as choice:
        if choice.way != forced:
            pytest.skip(choice.describe())
        before = set(views(faults))
        assert faults.srun("carol", "-w", NODE, "cat", "/etc/kept", edf=edf).good() == "kept\n"
        wait_until(lambda: set(views(faults)) <= before and not served(faults), 20, "the end of an idle image")
        script = "echo ready; read line; cat /etc/kept /opt/secret"
        words = ("srun", "-w", NODE, f"--environment={edf}", "sh", "-c", script)
        step = faults.cluster.start("carol", *words)
        try:
            assert step.stdout is not None and step.stdout.readline() == "ready\n"
            faults.stop_pioletd(NODE, kill=True)
            faults.start_pioletd(NODE)
            if forced == DEVICE_MAPPER:
                # The running step's, which the new daemon leaves alone.
                wait_until(lambda: len(views(faults)) == 1, 20, "the end of the other views")
        finally:
            out, _ = step.communicate("\n", 30)
        assert out == "kept\nof root in the image\n"
        wait_until(lambda: not views(faults) and not served(faults), 20, "the end of the step's image")


@pytest.mark.kernels
def test_more_users_than_views(faults: Faults, image: str) -> None:
    """Those beyond the limit are served by squashfuse, and do not see a difference."""
    with restarted(faults, 'image_mounts = "devicemapper"\nviews_per_image = 1') as choice:
        if choice.way != DEVICE_MAPPER:
            pytest.skip(choice.describe())
        for user, count in (("alice", 0), ("carol", 1), ("alice", 0)):
            edf = faults.cluster.edf(user, f'image = "{image}"\n')
            words = ("srun", "-w", NODE, f"--environment={edf}", "sh", "-c", f"{CHANGES}; read line")
            step = faults.cluster.start(user, *words)
            try:
                lines = [step.stdout.readline() for _ in range(10)] if step.stdout else []
                assert lines[-1] == "more\n", lines
                assert served(faults) == [user] * count and len(views(faults)) == 1
            finally:
                step.communicate("\n", 30)


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        ("EPERM", "this kernel refuses them, as RHEL 9's does"),
        ("EINVAL", "this kernel has none (Linux 6.2 or newer has them)"),
        ("ENOSYS", "this kernel has none, or a filter of system calls hides them"),
    ],
)
def test_a_kernel_that_refuses_idmapped_mounts(faults: Faults, image: str, error: str, clause: str) -> None:
    """The next way is taken by itself; the log and the note say which, and why."""
    simulator = (*PYTHON, str(SIMULATORS / "refuse_call.py"), "idmap", error)
    with restarted(faults, "", *simulator) as choice:
        assert choice.way in (DEVICE_MAPPER, FUSE)
        assert choice.tried[0] == (IDMAP, clause)
        assert choice.describe() in (faults.cluster.layout.log / f"pioletd-{NODE}.log").read_text("utf-8")
        edf = faults.cluster.edf("carol", f'image = "{image}"\n')
        assert faults.srun("carol", "-w", NODE, "sh", "-c", CHANGES, edf=edf).good().endswith("kept\nmore\n")


def test_a_kernel_on_which_no_way_is_left(faults: Faults, image: str) -> None:
    """The step is told on the node, in a sentence, before anything is mounted; steps without an image go on."""
    simulator = (*PYTHON, str(SIMULATORS / "refuse_call.py"), "idmap", "EPERM")
    with restarted(faults, 'image_mounts = "idmap"', *simulator) as choice:
        assert choice.way == ""
        done = faults.srun("alice", "-w", NODE, "true")
        assert_sentence(done, f"node {NODE}: ", "this kernel refuses them", 'image_mounts = "auto" takes what works')
        faults.cluster.run("alice", "srun", "-w", NODE, "true").good()
        # In a job on the node, srun knows it before an image is pulled.
        new = faults.cluster.push("never-pulled", [busybox_layer(), [oci.file("new", b"")]], Env=["PATH=/bin"])
        edf = faults.cluster.edf("alice", f'image = "{new}"\n')
        out = faults.cluster.sbatch("alice", f"srun --environment={edf} true\necho status $?\n", "-w", NODE)
        assert f"node {NODE}: images of the site's store cannot be mounted here: " in out and "status 0" not in out
        assert "pulling" not in out and "converting" not in out
        images = faults.cluster.run("alice", "piolet", "image", "list").good()
        assert "never-pulled" not in images


def test_a_kernel_too_old_for_containers(faults: Faults) -> None:
    simulator = (*PYTHON, str(SIMULATORS / "refuse_call.py"), "mount_setattr", "ENOSYS")
    with restarted(faults, "", *simulator) as choice:
        assert choice.refusal
        done = faults.srun("alice", "-w", NODE, "true")
        assert_sentence(done, f"node {NODE}: ", "is too old for containers: 5.12 is the oldest")
        assert "boot a newer kernel" in done.err
