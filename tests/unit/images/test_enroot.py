"""What enroot wrote into an image is read and never run; the files are as its src/docker.sh makes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import client, enroot, peek
from piolet.images.enroot import Configuration
from piolet.images.settings import ImagesConfig

needs_squashfs = pytest.mark.skipif(
    not (shutil.which("mksquashfs") and shutil.which("unsquashfs")), reason="needs squashfs-tools"
)
UNSQUASHFS = shutil.which("unsquashfs") or "unsquashfs"

RC = """\
# maintainer NVIDIA CORPORATION
# com.nvidia.volumes.needed nvidia_driver

mkdir -p "/workspace" 2> /dev/null
cd "/workspace" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/opt/nvidia/nvidia_entrypoint.sh' '--a b' 'it'\\''s' "$@"
else
    exec '/opt/nvidia/nvidia_entrypoint.sh' '--a b' 'it'\\''s' 'bash'
fi
"""
RC_LOCAL = """\
# This file is sourced by /etc/rc when the container starts.
# It can be used to manipulate the entrypoint or the command of the container.
"""
PLAIN_RC = RC.replace("'/opt/nvidia/nvidia_entrypoint.sh' '--a b' 'it'\\''s' ", "").replace("/workspace", "/")
ENVIRONMENT = 'PATH=/usr/local/cuda/bin:/usr/bin\nQUOTED="a b"\n  LEFT=x=y\n# no\n1BAD=x\nENROOT_X=1\nEMPTY=\nplain\n'


def test_what_an_import_of_a_real_image_says() -> None:
    found = enroot.read({"etc/rc": RC, "etc/rc.local": RC_LOCAL, "etc/environment": ENVIRONMENT}, "x.sqsh")
    assert found.env == ("PATH=/usr/local/cuda/bin:/usr/bin", "QUOTED=a b", "LEFT=x=y", "EMPTY=")
    assert found.workdir == "/workspace" and found.warnings == ()
    assert found.entrypoint == ("/opt/nvidia/nvidia_entrypoint.sh", "--a b", "it's")
    assert found.notes == (
        "4 variables are from its /etc/environment",
        "the working directory /workspace is from its /etc/rc",
        """the entrypoint /opt/nvidia/nvidia_entrypoint.sh '--a b' 'it'"'"'s' is from its /etc/rc""",
    )


def test_an_image_without_an_entrypoint() -> None:
    found = enroot.read({"etc/rc": PLAIN_RC}, "x.sqsh")
    assert (found.entrypoint, found.workdir, found.warnings) == ((), "/", ())


def test_an_image_that_enroot_did_not_make() -> None:
    assert enroot.read({}, "x.sqsh") == Configuration()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"etc/rc": "touch /tmp/ran\n" + RC}, "its /etc/rc is not as enroot writes it, and is not run: touch /tmp/ran"),
        ({"etc/rc": 'cd "$(touch /tmp/ran)"\n'}, "is not as enroot writes it"),
        ({"etc/rc": 'exec $(id) "$@"\n'}, "the entrypoint in its /etc/rc cannot be read"),
        ({"etc/rc": "exec $'a\\n' \"$@\"\n"}, "the entrypoint in its /etc/rc cannot be read"),
        ({"etc/rc.local": "export A=b\n"}, "its /etc/rc.local is a script, which is not run"),
        ({"etc/fstab": "/scratch /data none x-create=dir,bind 0 -1\n"}, 'write "/scratch:/data" in mounts'),
    ],
)
def test_what_has_no_effect_is_told(files: dict[str, str], said: str) -> None:
    (warning,) = enroot.read(files, "/x.sqsh").warnings
    assert warning.startswith("/x.sqsh: ") and said in warning


def test_volumes_need_no_mount() -> None:
    found = enroot.read({"etc/fstab": "${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw\n/ / none bind\n"}, "x")
    assert found.warnings == () and found.notes == (
        "its /etc/fstab makes a volume of /data, which needs no mount here",
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name, text in {"environment": ENVIRONMENT, "rc": RC, "rc.local": RC_LOCAL, "fstab": ""}.items():
        (tmp_path / "root/etc").mkdir(parents=True, exist_ok=True)
        (tmp_path / "root/etc" / name).write_text(text)
    return squash(tmp_path)


def squash(folder: Path) -> Path:
    subprocess.run(["mksquashfs", folder / "root", folder / "x.sqsh", "-quiet", "-noappend"], check=True)
    return folder / "x.sqsh"


@needs_squashfs
def test_a_sqsh_file_has_a_configuration(image: Path) -> None:
    began = time.monotonic()
    info = client.find(str(image), ImagesConfig(), "look", lambda _: None)
    assert time.monotonic() - began < 5
    assert info.env["PATH"] == "/usr/local/cuda/bin:/usr/bin" and info.workdir == "/workspace"
    assert info.entrypoint[0] == "/opt/nvidia/nvidia_entrypoint.sh" and info.warnings == ()
    assert info.image.path == str(image) and len(info.notes) == 3


@needs_squashfs
@pytest.mark.parametrize("walls", [("namespaces",), ("landlock",), ("namespaces", "landlock")])
def test_it_is_read_in_the_cage(image: Path, tmp_path: Path, walls: tuple[str, ...]) -> None:
    """A program in the place of unsquashfs sees the image and nothing beside it."""
    secret, spy = tmp_path / "secret", tmp_path / "bin/unsquashfs"
    secret.write_text("mine")
    spy.parent.mkdir()
    spy.write_text(f"#!/bin/sh\ncat {secret} || echo shut; echo x >{tmp_path}/written; head -c 4 {image}\n")
    spy.chmod(0o755)
    try:
        found = peek.read(str(image), ["etc/rc"], str(spy), walls)
    except ImageError as error:
        if "no cage" in error.message:
            pytest.skip(error.message)
        raise
    assert found == {"etc/rc": "shut\nhsqs"} and not (tmp_path / "written").exists()


@needs_squashfs
def test_without_a_cage_nothing_is_read(image: Path) -> None:
    with pytest.raises(ImageError, match="no cage"):
        peek.read(str(image), ["etc/rc"], UNSQUASHFS, ())


@needs_squashfs
def test_links_and_large_files_and_torn_images(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/rc").symlink_to("/etc/passwd")
    (tmp_path / "root/etc/fstab").symlink_to("environment")
    (tmp_path / "root/etc/environment").write_text("A=" + "x" * (peek.LIMIT_BYTES - 3) + "\n")
    image = squash(tmp_path)
    assert set(peek.read(str(image), enroot.FILES, UNSQUASHFS)) == {"etc/environment"}
    (tmp_path / "root/etc/environment").write_bytes(b"x" * (peek.LIMIT_BYTES + 1))
    with pytest.raises(ImageError, match="/etc/environment in it has more than"):
        peek.read(str(squash(tmp_path)), enroot.FILES, UNSQUASHFS)
    os.truncate(image, 200)
    info = client.find(str(image), ImagesConfig(), "look", lambda _: None)
    assert info.env == {} and "are not known: it is not a whole SquashFS file" in info.warnings[0]
    nowhere = client.find(str(image), ImagesConfig(mksquashfs="/nowhere/mksquashfs"), "look", lambda _: None)
    assert "are not known: /nowhere/unsquashfs is not there" in nowhere.warnings[0]
