"""What a container holds: root, mounts, working directory, entrypoint, variables; the same with either builder."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.nodes import Node, refused
from tests.cluster.support import BUSYBOX, Cluster, busybox_layer
from tests.support import oci

# -- the root


@pytest.mark.kernels
def test_a_writable_root_is_of_one_step_and_node(node: Node, tiny: str) -> None:
    script = "touch /etc/new /new; mkdir -p /a/b; echo more >> /marker; ls /etc/new; rm /bin/ls"
    text = f'image = "{tiny}"\n'
    assert node.sh(text, script).good() == "/etc/new\n"
    assert node.sh(text, "cat /marker; ls -d /new /etc/new /a 2>&1 | wc -l; ls /bin/ls").good() == (
        "in the image\n3\n/bin/ls\n"
    )


def test_nodes_do_not_see_each_others_changes(cluster: Cluster, tiny_edf: Path) -> None:
    script = "echo $SLURM_NODEID > /own; cat /own; ls / | grep -c own"
    out = cluster.srun("alice", tiny_edf, "-N4", "--label", "sh", "-c", script).good()
    assert sorted(out.splitlines()) == sorted([f"{n}: {n}" for n in range(4)] + [f"{n}: 1" for n in range(4)])


def test_a_root_that_is_not_writable(node: Node, tiny: str) -> None:
    room = node.cluster.room("alice")
    text = f'image = "{tiny}"\nwritable = false\nmounts = ["{room}:/data", "tmpfs:/fast"]\n'
    script = (
        "for place in / /etc /bin /run; do "
        "touch $place/x 2>/dev/null && echo could $place; done; rm /marker 2>/dev/null; "
        "echo more > /data/file && echo more > /fast/file && touch $HOME /tmp && whoami && cat /marker; "
        "chmod 600 /marker"
    )
    done = node.sh(text, script)
    assert done.out == "alice\nin the image\n"
    assert "Read-only file system" in done.err
    assert (room / "file").read_text() == "more\n"


# -- mounts


@pytest.fixture
def data(cluster: Cluster) -> Path:
    """A directory with odd names in it."""
    room = cluster.room("alice")
    for name in ("plain", "with space", "with:colon", "with=sign", "sub"):
        (room / name).mkdir()
        (room / name / "file").write_text(f"{name}\n")
        cluster.give("alice", room / name, room / name / "file")
    return room


@pytest.mark.kernels
def test_mounts(node: Node, tiny: str, data: Path) -> None:
    text = f"""
image = "{tiny}"
mounts = [
    "{data}/plain:/rw",
    "{data}/plain:/ro:ro",
    "{data}/plain/file:/etc/config.d/deep/file:ro",
    '{data}/with space:/a place',
    '{data}/with\\:colon:/c\\:d',
    "{data}/with=sign:/e=f:ro,nosuid,nodev",
    "./sub",
    "{data}/plain:/rw/below/it",
    "tmpfs:/scratch",
    "{data}/plain:/twice",
    "{data}/sub:/twice",
]
"""
    (data / "plain" / "below").mkdir()
    (data / "plain" / "below" / "it").mkdir()
    node.cluster.give("alice", data / "plain" / "below", data / "plain" / "below" / "it")
    script = """
cat /rw/file /ro/file /etc/config.d/deep/file '/a place/file'
cat /c:d/file /e=f/file "$SUB/file" /rw/below/it/file /twice/file
echo new > /rw/new && cat /ro/new
(echo no > /ro/no) 2>/dev/null || echo refused
(echo no > /etc/config.d/deep/file) 2>/dev/null || echo refused
(echo no > /e=f/no) 2>/dev/null || echo refused
echo in memory > /scratch/file; cat /scratch/file; stat -f -c %T /scratch
"""
    done = node.srun(text, "sh", "-c", script, room=data, SUB=str(data / "sub"))
    names = ["plain", "plain", "plain", "with space", "with:colon", "with=sign", "sub", "plain", "sub"]
    assert done.good().splitlines() == [*names, "new", *["refused"] * 3, "in memory", "tmpfs"]
    assert (data / "plain" / "new").read_text() == "new\n"
    assert not (data / "with=sign" / "no").exists()


@pytest.fixture(scope="module")
def linked(cluster: Cluster) -> str:
    """An image whose links lead to other places, absolute ones and out of it, as far as a link can."""
    links = [
        oci.folder("real"),
        oci.folder("srv"),
        oci.symlink("data", "/real"),
        oci.symlink("up", "../../../../real"),
        oci.symlink("dangling", "/nowhere/at/all"),
        oci.symlink("loop", "/loop"),
        oci.symlink("tmp", "/srv"),
        oci.symlink("home", "opt/homes"),
        oci.symlink("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
        oci.symlink("etc/localtime", "/usr/share/zoneinfo/Pacific/Apia"),
        oci.symlink("etc/hosts", "../../../../../../etc/shadow"),
        oci.symlink("etc/passwd", "/usr/lib/passwd"),
    ]
    base = [entry for entry in busybox_layer() if entry.info.name != "etc/passwd"]
    return cluster.push("linked", [[*base, *links]], Env=["PATH=/bin"])


def test_destinations_behind_links_of_the_image_stay_in_it(node: Node, linked: str, data: Path) -> None:
    text = f'image = "{linked}"\nmounts = ["{data}/plain:/data/one", "{data}/sub:/up/two", "{data}/sub:/dangling/x"]\n'
    done = node.sh(text, "cat /real/one/file /real/two/file /nowhere/at/all/x/file; ls /real")
    assert done.good() == "plain\nsub\nsub\none\ntwo\n"
    assert not Path("/real").exists()
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("place", ["/loop/x", "/bin/busybox", "/marker/below"])
def test_a_destination_that_cannot_be(node: Node, linked: str, data: Path, place: str) -> None:
    done = node.sh(f'image = "{linked}"\nmounts = ["{data}/plain:{place}"]\n', "ls")
    refused(done, place)


def test_links_where_the_hosts_files_belong(node: Node, linked: str) -> None:
    script = "cat /etc/resolv.conf; echo; cat /etc/hosts; whoami; date +%Z; cd ~ && pwd -P; ls -ld /tmp/. | cut -c1-10"
    said = node.sh(f'image = "{linked}"\n', script).good()
    assert said.startswith(Path("/etc/resolv.conf").read_text())
    assert " node1\n" in said
    assert "root:" not in said
    zone = subprocess.run(["date", "+%Z"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-4:] == ["alice", zone.strip(), "/opt/homes/alice", "drwxrwxrwt"]


@pytest.mark.kernels
def test_squashfs_files(node: Node, tiny: str, tmp_path: Path) -> None:
    room = node.cluster.room("alice")
    for name in ("root", "more"):
        tree = tmp_path / name
        (tree / "bin").mkdir(parents=True)
        if name == "root":
            (tree / "bin" / "busybox").write_bytes(BUSYBOX.read_bytes())
            (tree / "bin" / "busybox").chmod(0o755)
            (tree / "bin" / "sh").symlink_to("busybox")
            (tree / "bin" / "cat").symlink_to("busybox")
        (tree / "marker").write_text(f"{name}\n")
        command = ["mksquashfs", str(tree), str(room / f"{name}.sqsh"), "-quiet", "-no-progress", "-all-root"]
        subprocess.run(command, check=True, capture_output=True)
        node.cluster.give("alice", room / f"{name}.sqsh")
    text = 'image = "./root.sqsh"\nmounts = ["./more.sqsh:/opt/more:sqsh"]\n[env]\nPATH = "/bin"\n'
    script = "cat /marker /opt/more/marker; echo changed > /marker && cat /marker; echo no > /opt/more/marker"
    done = node.srun(text, "sh", "-c", script, room=room)
    assert done.out == "root\nmore\nchanged\n"
    assert done.status != 0
    both = f'image = "{tiny}"\nmounts = ["{room}/more.sqsh:/opt/more:sqsh", "{room}/more.sqsh:/opt/two:sqsh+ro"]\n'
    assert (
        node.srun(both, "cat", "/marker", "/opt/more/marker", "/opt/two/marker").good() == "in the image\nmore\nmore\n"
    )
    node.cluster.write("alice", room / "bad.sqsh", "this is no file system\n")
    refused(node.srun('image = "./bad.sqsh"\n', "true", room=room), "bad.sqsh", "SquashFS")
    # The right beginning, and then nothing: what only squashfuse can tell.
    (room / "cut.sqsh").write_bytes((room / "more.sqsh").read_bytes()[:100])
    node.cluster.give("alice", room / "cut.sqsh")
    refused(node.srun('image = "./cut.sqsh"\n', "true", room=room), "cut.sqsh")


# -- the working directory


def test_working_directories(node: Node, tiny: str, data: Path) -> None:
    there = node.sh(f'image = "{tiny}"\nworkdir = "/data/sub"\nmounts = ["{data}:/data"]\n', "pwd; cat file")
    assert there.good() == "/data/sub\nsub\n"
    refused(
        node.sh(f'image = "{tiny}"\nworkdir = "/no/such"\n', "pwd"), "working directory /no/such", "hint: set workdir"
    )
    refused(node.sh(f'image = "{tiny}"\nworkdir = "/marker"\n', "pwd"), "/marker", "Not a directory")
    own = node.cluster.push("workdir", [busybox_layer(oci.folder("srv/app"))], Env=["PATH=/bin"], WorkingDir="/srv/app")
    assert node.sh(f'image = "{own}"\n', "pwd; echo $PWD").good() == "/srv/app\n/srv/app\n"
    assert node.sh(f'image = "{own}"\nworkdir = "/bin"\n', "pwd").good() == "/bin\n"


# -- the entrypoint

ENTRY = b'#!/bin/sh\necho "entry: $*"\n[ "$1" = --flag ] && shift 2\nexport ENTERED=yes\nexec "$@"\n'


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["/entry.sh", "--flag", "two words"], "entry: --flag two words sh -c echo $ENTERED $0 $SLURM_PROCID X Y\n"),
        (["entry"], "entry: sh -c echo $ENTERED $0 $SLURM_PROCID X Y\n"),
        (["/bin/sh", "-c", 'echo shell form; exec "$0" "$@"'], "shell form\n"),
        (["/bin/busybox", "env", "ENTERED=static"], ""),
    ],
    ids=["exec", "in the path", "shell", "static"],
)
def test_entrypoints(node: Node, words: list[str], first: str) -> None:
    layer = busybox_layer(oci.file("entry.sh", ENTRY, 0o755), oci.file("bin/entry", ENTRY, 0o755))
    name = re.sub(r"\W", "", words[-1])[:20].lower() or "none"
    image = node.cluster.push(f"entry-{name}", [layer], Env=["PATH=/bin"], Entrypoint=words, Cmd=["unused"])
    command = ("sh", "-c", "echo $ENTERED $0 $SLURM_PROCID", "X", "Y")
    entered = {"": "static", "shell form\n": ""}.get(first, "yes")
    text = f'image = "{image}"\nentrypoint = true\n'
    done = node.srun(text, *command)
    assert done.good() == first.replace(" $SLURM_PROCID X Y", " $SLURM_PROCID X Y") + f"{entered} X 0\n".lstrip()
    assert node.srun(f'image = "{image}"\n', *command).good() == "X 0\n"
    assert node.srun(text, "sh", "-c", "exit 7").status == 7
    assert node.sh(text, "env | grep -c PIOLET_ARGV0").out.splitlines()[-1] == "0"


def test_an_entrypoint_of_several_tasks_and_one_that_is_not_there(node: Node) -> None:
    image = node.cluster.push("entry-gone", [busybox_layer()], Env=["PATH=/bin"], Entrypoint=["/gone"])
    done = node.srun(f'image = "{image}"\nentrypoint = true\n', "true")
    assert done.status == 127
    assert "cannot run the image's entrypoint: /gone: No such file or directory" in done.err
    assert "hint: set entrypoint = false" in done.err


# -- variables


def test_variables(node: Node) -> None:
    image = node.cluster.push(
        "variables",
        [busybox_layer()],
        Env=[
            "PATH=/image/bin:/bin",
            "BOTH=image",
            "GONE=image",
            "ONLY=image",
            "HOME=/image",
            "SLURM_PROCID=99",
            "E=a=b c",
        ],
    )
    text = f"""
image = "{image}"
[env]
BOTH = "file"
GONE = ""
NEVER = ""
HOSTVAR_GONE = ""
PATH = "${{PATH}}:/more"
NEW = "${{HOSTVAR}} and $${{HOSTVAR}} ${{MISSING:-none}}"
QUOTED = '''a "b" 'c' $(id) `id` \\ =
second line'''
"""
    script = 'env | sort; echo "$QUOTED"'
    env = {"HOSTVAR": "host", "HOSTVAR_GONE": "host", "LANG": "xx_YY.UTF-8", "LC_ALL": "xx_YY.UTF-8", "BOTH": "host"}
    out = node.sh(text, script, **env).good()
    values = dict(line.partition("=")[::2] for line in out.splitlines())
    assert values["BOTH"] == "file"
    assert values["ONLY"] == "image"
    assert values["E"] == "a=b c"
    assert values["HOSTVAR"] == "host"
    assert values["PATH"] == "/image/bin:/bin:/more"
    assert values["NEW"] == "host and ${HOSTVAR} none"
    assert values["HOME"] == "/home/alice"
    assert values["USER"] == values["LOGNAME"] == "alice"
    assert values["SLURM_PROCID"] == "0"
    assert not values.keys() & {"GONE", "NEVER", "HOSTVAR_GONE", "LANG", "LC_ALL"}
    assert not [name for name in values if "PIOLET_ENV" in name or "PIOLET_REQ" in name or "SLURM_SPANK" in name]
    assert out.endswith("a \"b\" 'c' $(id) `id` \\ =\nsecond line\n")


# -- images of every kind


def test_a_command_that_only_the_image_has(node: Node) -> None:
    layer = busybox_layer(oci.file("opt/only", b"#!/bin/sh\necho only here\n", 0o755))
    image = node.cluster.push("only", [layer], Env=["PATH=/opt:/bin"])
    assert node.srun(f'image = "{image}"\n', "only").good() == "only here\n"
    # And one that both have, elsewhere: the image's place counts.
    script = node.srun(f'image = "{image}"\n', "readlink", "/proc/self/exe")
    assert script.good() == "/bin/busybox\n"


def test_an_image_of_one_static_program(node: Node) -> None:
    image = node.cluster.push("scratch", [[oci.file("busybox", BUSYBOX.read_bytes(), 0o755)]])
    text = f'image = "{image}"\n'
    assert node.srun(text, "/busybox", "whoami").good() == "alice\n"
    assert " node1\n" in node.srun(text, "/busybox", "cat", "/etc/hosts").good()
    said = node.srun(
        text, "/busybox", "sh", "-c", "cd && pwd; /busybox ls -d /tmp /dev/null /etc/resolv.conf /proc/self/"
    ).good()
    assert said == "/home/alice\n/dev/null\n/etc/resolv.conf\n/proc/self/\n/tmp\n"
    entry = node.cluster.push(
        "distroless", [[oci.file("busybox", BUSYBOX.read_bytes(), 0o755)]], Entrypoint=["/busybox"]
    )
    assert node.srun(f'image = "{entry}"\nentrypoint = true\n', "whoami").good() == "alice\n"
    frozen = f'image = "{image}"\nwritable = false\nmounts = ["/tmp:/a/b/c:ro"]\n'
    assert node.srun(frozen, "/busybox", "ls", "-d", "/a/b/c").good() == "/a/b/c\n"


def test_root_in_the_container(node: Node, tiny: str) -> None:
    script = "id -u && : >/new && chown 5:6 /new && ls -n /new | cut -d' ' -f3"
    assert node.sh(f'image = "{tiny}"\nremap_root = true\n', script).good().split()[0] == "0"


@pytest.mark.kernels
def test_an_image_with_files_that_only_root_may_read(node: Node) -> None:
    entries = [
        oci.file("closed", b"mode 0\n", 0o000, uid=0, gid=0),
        oci.file("private", b"mode 600\n", 0o600, uid=0, gid=0),
        oci.folder("dir", 0o700, uid=0, gid=0),
        oci.file("dir/file", b"below\n", 0o600, uid=12345, gid=54321),
    ]
    image = node.cluster.push("closed", [busybox_layer(*entries)], Env=["PATH=/bin"])
    script = "cat /private /dir/file; stat -c '%U %a' /closed /private /dir /dir/file; rm -r /dir && echo removed"
    said = node.sh(f'image = "{image}"\n', script).good().splitlines()
    assert said[:2] == ["mode 600", "below"]
    assert said[-1] == "removed"
    assert [line.split()[0] for line in said[2:6]] == ["alice"] * 4


def test_without_an_image_the_step_runs_on_the_host(node: Node) -> None:
    room = node.cluster.room("alice")
    text = '[env]\nADDED = "${WORD}"\nDROPPED = ""\n'
    done = node.srun(
        text,
        "sh",
        "-c",
        "echo $ADDED ${DROPPED:-gone} $LANG; pwd; ls -d /var/lib/dpkg",
        room=room,
        WORD="x",
        DROPPED="y",
    )
    assert done.good() == f"x gone C.UTF-8\n{room}\n/var/lib/dpkg\n"
    assert os.path.exists("/var/lib/dpkg")
