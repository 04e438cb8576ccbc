"""Jobs of pyxis and of enroot as definition files."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.environment import foreign, written

SCRIPT = """#!/bin/bash
#SBATCH -N2 --container-image=nvcr.io#nvidia/pytorch:24.05-py3
#SBATCH --container-mounts=/scratch/$USER:/data:ro,/opt
# srun --container-image=no
export A=1
for i in 1 2; do
    srun -n4 --container-workdir /data \\
        --container-env=NCCL_DEBUG,HF_HOME --no-container-mount-home python train.py "it's $i"  # that's it
done
echo 'an open quote
"""


def pyxis(text: str) -> foreign.Converted:
    return foreign.from_pyxis(list(foreign.commands(text)))


def enroot(text: str) -> foreign.Converted:
    return foreign.from_enroot(list(foreign.commands(text)))


def test_a_script_of_pyxis() -> None:
    made = pyxis(SCRIPT)
    assert made.data == {
        "image": "nvcr.io#nvidia/pytorch:24.05-py3",
        "mounts": ["/scratch/${USER}:/data:ro", "/opt"],
        "workdir": "/data",
        "env": {"NCCL_DEBUG": "${NCCL_DEBUG}", "HF_HOME": "${HF_HOME}"},
        "home": False,
    }
    assert made.lost == []
    written.check("x", written.new(made.data))


@pytest.mark.parametrize(
    ("options", "data", "lost"),
    [
        ("--container-image=ubuntu", {}, None),
        ("--container-image docker://ubuntu", {"image": "ubuntu"}, None),
        ("--container-image=./x.sqsh", {"image": "./x.sqsh"}, None),
        ("--container-image=dockerd://ubuntu", {}, "the image dockerd://ubuntu: images of dockerd are imported first"),
        ("--container-image=ubuntu --container-mount-home", {"home": True}, None),
        ("--container-image=ubuntu --container-readonly", {"writable": False}, None),
        ("--container-image=ubuntu --container-writable", {"writable": True}, None),
        ("--container-image=ubuntu --no-container-entrypoint", {"entrypoint": False}, None),
        ("--container-image=ubuntu --container-entrypoint", {"entrypoint": True}, None),
        ("--container-image=ubuntu --container-remap-root", {"remap_root": True}, None),
        ("--container-image=ubuntu --no-container-remap-root", {"remap_root": False}, None),
        ("--container-image=ubuntu --container-save=/x.sqsh", {"save": "/x.sqsh"}, None),
        (
            "--container-image=ubuntu --container-name=x",
            {},
            "--container-name=x: a container lives as long as its step",
        ),
        ("--container-image=ubuntu --container-new=1", {}, "--container-new: has no counterpart"),
        ("--container-image=ubuntu --container-mounts=/a:/b:ro+x-detach", {"mounts": ["/a:/b:ro"]}, "x-detach"),
    ],
)
def test_options_of_pyxis(options: str, data: dict[str, Any], lost: str | None) -> None:
    made = pyxis(f"srun {options} cmd\n")
    assert made.data == {"image": "ubuntu", "home": False} | data
    assert (lost is None) == (made.lost == [])
    assert lost is None or lost in made.lost[0]


def test_variables_of_the_script() -> None:
    text = "IMAGE=$SCRATCH/x.sqsh\nexport DATA='/my data'\nOTHER=$(pwd)\nsrun --container-image=$IMAGE "
    made = pyxis(text + '--container-mounts="${DATA}:/d,$OTHER:/o" cmd\n')
    assert made.data["image"] == "${SCRATCH}/x.sqsh"
    assert made.data["mounts"] == ["/my data:/d", "${OTHER}:/o"]


def test_an_image_by_its_name_only() -> None:
    made = pyxis("srun --container-name=mine cmd\n")
    assert "image" not in made.data
    assert made.lost[-1].startswith("no --container-image")


def test_two_images_in_one_script() -> None:
    made = pyxis("srun --container-image=a x\nsrun --container-image=b x\n")
    assert made.data["image"] == "a"
    assert made.lost == ["image is said twice, 'a' and 'b': write a file for each"]


def test_a_script_of_enroot() -> None:
    made = enroot(
        "#!/bin/sh\nenroot import docker://nvcr.io#nvidia/cuda:12.4.1-base\n"
        "enroot create --name cuda nvidia+cuda+12.4.1-base.sqsh\n"
        "/usr/bin/enroot start --rw -m /scratch:/scratch:ro --mount '/a /b none bind,ro,x-create=dir 0 0' -e A=1 "
        "--env HOME_DIR cuda nvidia-smi\n"
    )
    assert made.data == {
        "image": "nvcr.io#nvidia/cuda:12.4.1-base",
        "writable": True,
        "mounts": ["/scratch:/scratch:ro", "/a:/b:bind+ro+x-create=dir"],
        "env": {"A": "1", "HOME_DIR": "${HOME_DIR}"},
        "home": False,
    }
    assert made.lost == []
    written.check("x", written.new(made.data))


@pytest.mark.parametrize(
    ("command", "image", "lost"),
    [
        ("enroot start ./x.sqsh sh", "./x.sqsh", None),
        ("enroot start x.sqsh sh", "./x.sqsh", None),
        ("enroot start $SCRATCH/x.sqsh", "${SCRATCH}/x.sqsh", None),
        ("enroot start mine", None, "the container mine was made by `enroot create` elsewhere"),
        ("enroot start --root ./x.sqsh", "./x.sqsh", None),
        ("enroot start -c /conf ./x.sqsh", "./x.sqsh", "--conf=/conf: has no counterpart"),
    ],
)
def test_starts_of_enroot(command: str, image: str | None, lost: str | None) -> None:
    made = enroot(command + "\n")
    assert made.data.get("image") == image
    assert made.data["writable"] is False
    assert (lost is None) == (made.lost == [])
    assert lost is None or lost in made.lost[0]


def test_nothing_of_it() -> None:
    with pytest.raises(EnvironmentFileError, match="there is no option of pyxis in this"):
        pyxis("srun hostname\n")
    with pytest.raises(EnvironmentFileError, match="there is no `enroot start` in this"):
        enroot("enroot list\n")


def test_root_of_a_container_of_enroot() -> None:
    made = foreign.from_enroot([["enroot", "start", "-rw", "./x.sqsh"]])
    assert made.data["remap_root"] is True and made.data["writable"] is True


def test_variables_of_pyxis() -> None:
    script = """#!/bin/bash
export PYXIS_CONTAINER_IMAGE=ubuntu:24.04
PYXIS_CONTAINER_MOUNTS=/a:/b:ro,umount:/etc/hosts
export PYXIS_CONTAINER_MOUNT_HOME=1
export PYXIS_CONTAINER_READONLY=yes
export PYXIS_CONTAINER_ENTRYPOINT=perhaps
export PYXIS_CONTAINER_REMAP_ROOT=0
srun true
"""
    made = foreign.from_pyxis(list(foreign.commands(script)))
    assert made.data == {
        "image": "ubuntu:24.04", "mounts": ["/a:/b:ro", "!/etc/hosts"], "home": True, "writable": False,
        "remap_root": False,
    }  # fmt: skip
    assert made.lost == []
