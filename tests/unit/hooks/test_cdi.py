"""Specifications of devices become entries of our own plan; their hooks are never run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from piolet.api import Compatible, Library, Link, Mount, Variable
from piolet.hooks import facts
from piolet.hooks.cdi import Devices, SpecError, compile_spec
from piolet.hooks.settings import HooksConfig

CUDA = "/usr/lib64/libcuda.so.550.54"


def spec(**edits: Any) -> dict[str, Any]:
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all"}], "containerEdits": edits}


def hook(*words: str, path: str = "/usr/bin/nvidia-ctk") -> dict[str, Any]:
    return {"hookName": "createContainer", "path": path, "args": list(words)}


def entries(**edits: Any) -> tuple[Any, ...]:
    return compile_spec(spec(**edits), lambda path: "libcuda.so.1" if "libcuda" in path else "")["nvidia.com/gpu=all"]


def test_what_nvidia_ctk_writes_becomes_entries() -> None:
    """Of its four hooks, by the old name and by the new one."""
    found = entries(
        env=["NVIDIA_VISIBLE_DEVICES=void"],
        deviceNodes=[{"path": "/dev/nvidia0", "major": 195}, {"path": "/dev/nvidiactl", "hostPath": "/dev/nvidiactl"}],
        mounts=[{"hostPath": CUDA, "containerPath": CUDA, "options": ["ro", "nosuid", "nodev", "rbind"]}],
        hooks=[
            hook("nvidia-ctk", "hook", "create-symlinks", "--link", "libcuda.so.1::/usr/lib64/libcuda.so"),
            hook("nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=550.54", path="/opt/nvidia-cdi-hook"),
            hook("nvidia-ctk", "hook", "update-ldcache", "--folder", "/usr/lib64"),
            hook("nvidia-ctk", "hook", "chmod", "--mode", "755", "--path", "/dev/dri"),
            hook("nvidia-cdi-hook", "disable-device-node-modification", path="/usr/bin/nvidia-cdi-hook"),
        ],
    )
    assert found == (
        Mount(CUDA, CUDA),
        Variable("NVIDIA_VISIBLE_DEVICES", "void"),
        Link("/usr/lib64/libcuda.so", "libcuda.so.1"),
        Compatible("/usr/local/cuda/compat", "550.54"),
        Library("libcuda.so.1", "/usr/lib64/libcuda.so.1"),
        Link("/usr/lib64/libcuda.so.1", "libcuda.so.550.54"),
        Library("libcuda.so", "/usr/lib64/libcuda.so"),
    )


def test_amd_s_devices_by_the_same_code() -> None:
    found = compile_spec(
        {
            "cdiVersion": "0.6.0",
            "kind": "amd.com/gpu",
            "containerEdits": {"deviceNodes": [{"path": "/dev/kfd"}]},
            "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/dri/renderD128"}]}}],
        },
        lambda _: "",
    )
    assert found == {"amd.com/gpu=0": ()}, "its nodes are in the host's /dev"


def test_a_device_node_elsewhere_is_a_mount() -> None:
    assert entries(deviceNodes=[{"path": "/dev/x", "hostPath": "/dev/y"}]) == (Mount("/dev/y", "/dev/x", False),)


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        (
            {"hooks": [hook("sh", "-c", "id", path="/bin/sh")]},
            "its hook '/bin/sh -c id' is not one that can be replaced",
        ),
        ({"hooks": [hook("nvidia-ctk", "hook", "new-thing")]}, "'/usr/bin/nvidia-ctk hook new-thing' is not one"),
        (
            {"hooks": [hook("nvidia-ctk", "hook", "chmod", "--path", "/etc")]},
            "chmod is for /etc, which is no",
        ),
        ({"hooks": [hook("nvidia-ctk", "hook", "create-symlinks", "--link", "x")]}, "a link that is not TARGET::PATH"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "../b"}]}, "the path '../b', which is not absolute"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "nfs"}]}, "a mount of the type nfs"),
        ({"netDevices": []}, "it asks for netDevices, which is not supported"),
        ({"env": ["NO"]}, "its variable 'NO' is not NAME=VALUE"),
        ({"env": "NO"}, "its env is not a list"),
    ],
)
def test_what_cannot_be_done_is_named(edits: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError) as error:
        entries(**edits)
    assert why in error.value.message


@pytest.mark.parametrize("wrong", [[], None, {"kind": "nvidia"}, {"kind": "a/b", "devices": [{"name": 5}]}])
def test_no_specification(wrong: Any) -> None:
    with pytest.raises(SpecError):
        compile_spec(wrong, lambda _: "")


def test_a_device_that_is_not_there() -> None:
    devices = Devices({"nvidia.com/gpu=0": ()}, {}, {"amd.com/gpu": "/etc/cdi/amd.json: broken"})
    with pytest.raises(SpecError, match=r"there is no device nvidia\.com/gpu=1") as error:
        devices.of(["nvidia.com/gpu=1"])
    assert error.value.hint == "devices here: nvidia.com/gpu=0"
    with pytest.raises(SpecError, match=r"amd\.com/gpu=0 cannot be given: /etc/cdi/amd\.json: broken"):
        devices.of(["amd.com/gpu=0"])


def written(tmp_path: Path, text: str, name: str = "x.json", mode: int = 0o644) -> HooksConfig:
    (tmp_path / "cdi").mkdir(exist_ok=True)
    (tmp_path / "cdi" / name).write_text(text)
    (tmp_path / "cdi" / name).chmod(mode)
    return HooksConfig(cdi=(str(tmp_path / "cdi"), str(tmp_path / "none")), driver_root=str(tmp_path))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of root's need root")


@needs_root
@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_files_that_root_alone_can_write(tmp_path: Path, name: str) -> None:
    found = facts.devices(written(tmp_path, json.dumps(spec()), name))
    assert set(found.entries) == {"nvidia.com/gpu=all"}
    assert found.origin["nvidia.com/gpu=all"].endswith(name)


@needs_root
def test_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    found = facts.devices(written(tmp_path, json.dumps(spec()), mode=0o666))
    assert not found.entries
    assert "can be written by others than root" in next(iter(found.broken.values()))


@needs_root
def test_a_directory_that_is_a_user_s_is_not_believed(tmp_path: Path) -> None:
    config = written(tmp_path, json.dumps(spec()))
    os.chown(tmp_path / "cdi", 65534, 65534)
    found = facts.devices(config)
    assert not found.entries
    assert "does not belong to root" in next(iter(found.broken.values()))


@needs_root
@pytest.mark.parametrize(
    ("text", "name"), [("{", "x.json"), ("a: [", "x.yaml"), ("[" * 100000, "x.json"), ("[" * 100000, "x.yaml")]
)
def test_a_broken_file_is_told_and_no_more(tmp_path: Path, text: str, name: str) -> None:
    found = facts.devices(written(tmp_path, text, name))
    assert not found.entries
    assert list(found.broken) == [str(tmp_path / "cdi" / name)]


@needs_root
def test_a_hook_that_cannot_be_replaced_makes_its_devices_an_error(tmp_path: Path) -> None:
    """And not a specification of our own in its place: what the site has written is meant."""
    text = json.dumps(spec(hooks=[hook("sh", "-c", "id", path="/bin/sh")]))
    found = facts.devices(written(tmp_path, text))
    with pytest.raises(SpecError, match="its hook '/bin/sh -c id' is not one that can be replaced"):
        found.of(["nvidia.com/gpu=all"])
