"""What mounts do to the directories that they come from: nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Node, refused
from tests.cluster.support import Cluster, busybox_layer
from tests.support import oci


def contents(directory: Path) -> dict[str, str]:
    """Return every file, link and directory below, with what is in it."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "/"
    return found


@pytest.fixture
def etc(cluster: Cluster) -> Path:
    """A directory of alice with a passwd, a group and a link for localtime."""
    room = cluster.room("alice")
    passwd = "root:x:0:0::/:/bin/sh\nalice:x:{0}:{0}:mine:/home/alice:/bin/sh\n".format(os.stat(room).st_uid)
    cluster.write("alice", room / "passwd", passwd)
    cluster.write("alice", room / "group", "users:x:100:\n")
    (room / "localtime").symlink_to("/usr/share/zoneinfo/Zulu")
    return room


@pytest.mark.parametrize("flags", ["", ":ro"])
def test_a_directory_mounted_at_etc_stays_as_it_is(node: Node, tiny: str, etc: Path, flags: str) -> None:
    before = contents(etc)
    done = node.sh(f'image = "{tiny}"\nmounts = ["{etc}:/etc{flags}"]\n', "cat /etc/passwd /etc/group; ls /etc; whoami")
    assert contents(etc) == before
    said = before["passwd"] + before["group"] + "group\nlocaltime\npasswd\nalice\n"
    assert done.good() == said


def test_the_host_s_etc_and_its_files(node: Node, tiny: str) -> None:
    before = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    for mount in ("/etc:/etc", "/etc:/etc:ro", "/etc/passwd:/etc/passwd:ro", "/etc/group:/etc/group", "/etc/passwd"):
        done = node.sh(f'image = "{tiny}"\nmounts = ["{mount}"]\n', "cat /etc/passwd /etc/group; whoami")
        lines = done.good().splitlines()
        assert lines[-1] == "alice"
        assert before[1 if "group" in mount else 0].splitlines()[0] in lines
    assert (Path("/etc/passwd").read_text(), Path("/etc/group").read_text()) == before


@pytest.fixture
def tmp_before() -> Iterator[set[str]]:
    """The names in the host's /tmp."""
    yield set(os.listdir("/tmp"))


def test_mount_points_are_not_made_in_the_host_s_directories(
    node: Node, tiny: str, etc: Path, tmp_before: set[str]
) -> None:
    room = node.cluster.room("alice")
    (room / "there").mkdir()
    for mounts, place in (
        ([f"{room}:/data", f"{etc}:/data/sub"], "/data/sub"),
        ([f"{room}:/data", f"{etc}/passwd:/data/a/b"], "/data/a/b"),
        ([f"{etc}:/tmp/piolet-never-made"], "/tmp/piolet-never-made"),
        ([f"{etc}:/home/alice/piolet-never-made"], "/home/alice/piolet-never-made"),
    ):
        listing = ", ".join(f'"{mount}"' for mount in mounts)
        done = node.sh(f'image = "{tiny}"\nmounts = [{listing}]\n', "true")
        refused(done, place, "hint: ", "x-create")
    assert contents(room) == {"there": "/"}
    assert {name for name in set(os.listdir("/tmp")) - tmp_before if "piolet-never" in name} == set()
    assert not Path("/home/alice/piolet-never-made").exists()
    text = (
        f'image = "{tiny}"\nmounts = ["/tmp:/var/tmp", "{room}:/data", "{etc}:/data/there", "tmpfs:/t", "{etc}:/t/x"]\n'
    )
    assert node.sh(text, "cat /data/there/group /t/x/group").good() == "users:x:100:\n" * 2
    assert contents(room) == {"there": "/"}


def test_x_create_makes_the_mount_point(node: Node, tiny: str, etc: Path) -> None:
    room = node.cluster.room("alice")
    text = f'image = "{tiny}"\nmounts = ["{room}:/data", "{etc}:/data/sub:ro,x-create"]\n'
    assert node.sh(text, "cat /data/sub/group").good() == "users:x:100:\n"
    assert contents(room) == {"sub": "/"}
    assert (room / "sub").stat().st_uid == room.stat().st_uid


def test_a_link_of_the_image_leads_nothing_of_ours_into_a_mount(node: Node, etc: Path) -> None:
    layer = busybox_layer(oci.symlink("etc", "/data"), oci.folder("data"), etc=False)
    image = node.cluster.push("etc-elsewhere", [layer], Env=["PATH=/bin"])
    before = contents(etc)
    said = node.sh(f'image = "{image}"\nmounts = ["{etc}:/data"]\n', "cat /etc/group; whoami").good()
    assert contents(etc) == before
    assert said == "users:x:100:\nalice\n"


def test_the_node_makes_nothing_where_only_it_sees_the_image_s_links(node: Node, etc: Path) -> None:
    layer = busybox_layer(oci.symlink("data", "/mnt"), oci.folder("mnt"))
    image = node.cluster.push("data-elsewhere", [layer], Env=["PATH=/bin"])
    room = node.cluster.room("alice")
    text = f'image = "{image}"\nmounts = ["{room}:/mnt", "{etc}:/data/sub"]\n'
    refused(node.sh(text, "true"), f"cannot mount {etc} at /data/sub", "nothing is made", "hint: make it yourself")
    assert contents(room) == {}
