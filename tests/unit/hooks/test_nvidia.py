"""A driver's files, found without a specification; a container in which its programs run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.api import Compatible, Files, Mount
from piolet.container import alone
from piolet.container.entries import collect
from piolet.environment.settings import EnvironmentConfig
from piolet.hooks import facts, nvidia
from piolet.hooks.settings import HooksConfig

from tests.simulators import driver

NOWHERE = HooksConfig(cdi=())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.install(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root with the C library of this machine, and nothing else."""
    root = tmp_path / "image"
    for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/x86_64-linux-gnu/libc.so.6"):
        for place in (path, path.replace("x86_64", "aarch64")):
            if os.path.exists(place):
                (root / place[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(os.path.realpath(place), root / place[1:])
    for name in ("proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


def test_a_driver_is_found(installed: Path) -> None:
    found = facts.devices(dataclasses.replace(NOWHERE, driver_root=str(installed)))
    uuids = {f"nvidia.com/gpu={driver.UUID[:-1]}{number}" for number in range(2)}
    assert set(found.entries) == {"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all", *uuids}
    entries = found.of(["nvidia.com/gpu=all"])
    (files,) = [entry for entry in entries if isinstance(entry, Files)]
    assert (files.source, files.destination) == (f"{installed}/usr/lib64", "/usr/lib64")
    assert f"libcuda.so.{driver.VERSION}" in files.names
    assert Mount(f"{installed}/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi") in entries
    assert ("libcuda.so.1", f"libcuda.so.{driver.VERSION}") in files.links
    assert ("libcuda.so", "libcuda.so.1") in files.links
    assert {"libnvidia-nvvm.so.4", "libcuda.so.1", "libcuda.so"} <= set(files.found)
    assert Compatible("/usr/local/cuda/compat", driver.VERSION) in entries


def test_without_a_driver_there_is_nothing(tmp_path: Path) -> None:
    assert nvidia.make(str(tmp_path)) is None or os.path.exists("/dev/nvidia0")


def test_libraries_of_another_version_are_not_taken(installed: Path, tmp_path: Path) -> None:
    """A driver that was updated and not loaded yet: what is mounted has to be that of the module."""
    other = tmp_path / "driver"
    shutil.copytree(installed, other)
    (other / "sys/module/nvidia/version").write_text("998.1\n")
    assert nvidia.make(str(other)) is None


def run(image: Path, installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run words in a container with the driver, in a process that has no threads."""
    code = (
        "import sys; from tests.unit.hooks.test_nvidia import inside; "
        f"sys.exit(inside({str(image)!r}, {str(installed)!r}, {words!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def inside(image: str, installed: str, words: tuple[str, ...]) -> int:
    found = facts.devices(dataclasses.replace(NOWHERE, driver_root=installed))
    additions = collect(found.of(["nvidia.com/gpu=all"]), {}, (), {})
    return alone.run(image, additions, words, {"PATH": "/usr/bin"}, EnvironmentConfig())


def test_a_program_of_the_driver_runs_in_a_container(image: Path, installed: Path) -> None:
    """/usr/lib64 is not where Debian's loader looks by itself: it finds the library by the cache that was written."""
    done = run(image, installed, "nvidia-smi")
    assert done.stdout == f"{driver.SAYS}\n", done.stderr
    assert done.returncode == 0
    assert not (image / "etc/ld.so.cache").exists(), "what is written is the container's"


def test_what_an_image_has_at_these_places_gives_way(image: Path, installed: Path) -> None:
    """A stub of the image's own, and a link that leads elsewhere."""
    (image / "usr/lib64").mkdir(parents=True)
    (image / "usr/lib64/libcuda.so.1").write_text("a stub")
    (image / f"usr/lib64/libnvidia-ml.so.{driver.VERSION}").symlink_to("/etc/elsewhere")
    assert run(image, installed, "nvidia-smi").stdout == f"{driver.SAYS}\n"
    assert (image / "usr/lib64/libcuda.so.1").read_text() == "a stub", "what is written is the container's"


def test_a_link_of_the_image_in_the_place_of_the_directory(image: Path, installed: Path) -> None:
    (image / "usr").mkdir()
    (image / "usr/lib64").symlink_to("/opt/lib")
    assert run(image, installed, "nvidia-smi").stdout == f"{driver.SAYS}\n"


def test_an_image_s_own_cache_is_added_to(image: Path, installed: Path) -> None:
    shutil.copy("/etc/ld.so.cache", image / "etc/ld.so.cache")
    before = (image / "etc/ld.so.cache").read_bytes()
    assert run(image, installed, "nvidia-smi").stdout == f"{driver.SAYS}\n"
    assert (image / "etc/ld.so.cache").read_bytes() == before


@pytest.mark.parametrize("broken", [b"", b"glibc-ld.so.cache1.1" + b"\xff" * 60, b"nothing of the kind"])
def test_a_broken_cache_of_an_image_is_replaced(image: Path, installed: Path, broken: bytes) -> None:
    (image / "etc/ld.so.cache").write_bytes(broken)
    assert run(image, installed, "nvidia-smi").stdout == f"{driver.SAYS}\n"


def test_a_pipe_in_the_place_of_the_cache_holds_nothing_up(image: Path, installed: Path) -> None:
    os.mkfifo(image / "etc/ld.so.cache")
    assert run(image, installed, "nvidia-smi").stdout == f"{driver.SAYS}\n"
