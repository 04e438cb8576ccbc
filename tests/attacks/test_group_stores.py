"""Attacks on a store that a group shares (EDF_IMAGESTORE_GROUP), by who is not, or is no longer, in the group."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack
from tests.cluster.support import Cluster, busybox_layer
from tests.support import oci
from tools.cluster.accounts import numbers

NAME = "localhost/team:1"


@dataclass(frozen=True)
class Team:
    """A store of the group `alicegrp`, whose one member is alice, with one image of hers."""

    store: Path
    variables: Mapping[str, str]
    edf: Path
    image: Path


@pytest.fixture
def team(cluster: Cluster, tmp_path: Path) -> Team:
    room = cluster.room("alice")
    variables = {"EDF_IMAGESTORE": f"{room}/store", "EDF_IMAGESTORE_GROUP": "alicegrp"}
    oci.build(tmp_path / "image", [busybox_layer()], settings={"Env": ["PATH=/bin"]})
    oci.archive(tmp_path / "image", room / "team.tar")
    cluster.give("alice", room / "team.tar")
    words = ("piolet", "image", "import", str(room / "team.tar"), "--name", "team:1")
    cluster.run("alice", *words, env=variables).good()
    (image,) = (room / "store").glob("*.sqsh")
    return Team(room / "store", variables, cluster.edf("alice", f'image = "{NAME}"\n', room), image)


def exchange(image: Path, folder: Path) -> None:
    """Put another image in the place of one, of whose owner and mode it is."""
    was = image.stat()
    (folder / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for name in ("sh", "cat"):
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "marker").write_text("of bob\n")
    other = folder.parent / "other.sqsh"
    os.spawnvp(os.P_WAIT, "mksquashfs", ["mksquashfs", str(folder), str(other), "-quiet", "-no-progress", "-all-root"])
    shutil.copyfile(other, image.with_suffix(".new"))
    os.chown(image.with_suffix(".new"), was.st_uid, was.st_gid)
    image.with_suffix(".new").chmod(0o660)
    image.with_suffix(".new").rename(image)


@attack("whoever owns a file of a group's store is believed")
def test_who_has_left_the_group_gives_it_another_image(cluster: Cluster, team: Team, tmp_path: Path) -> None:
    """Promise: a file of the store counts only if a present member owns it. Who has left may own one, or hold one of
    its directories open; root stands in for that here."""
    exchange(team.image, tmp_path / "root")
    os.chown(team.image, numbers("bob")[0], -1)
    done = cluster.srun("alice", team.edf, "cat", "/marker", env=team.variables)
    if "of bob" in done.out:
        raise Broken("alice ran an image of bob's, who is not in her group")
    assert "there is no image" in done.err, done


@attack("a group's store may be anybody's")
def test_a_store_that_everybody_may_write_to(cluster: Cluster, team: Team, tmp_path: Path) -> None:
    """Promise: nobody outside of the group says what is in its store: with a mode that lets them, it is refused."""
    team.store.chmod(0o2777)
    exchange(team.image, tmp_path / "root")  # as anybody could: the directory is theirs to write to
    done = cluster.srun("alice", team.edf, "cat", "/marker", env=team.variables)
    if "of bob" in done.out:
        raise Broken("alice ran an image from a store that everybody may write to")
    assert "may be written by everybody" in done.err, done
