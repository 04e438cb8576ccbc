"""What is tested on each kernel that we boot (`make test-kernels`), and here as far as this one has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.system import linux

from tests.kernels.support import Store, make_images


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is here is of `make test-kernels`, and needs root."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernels)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root, to mount"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A directory with images: of two ids, of one, and one whose table of ids is damaged."""
    return make_images(tmp_path_factory.mktemp("store"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount at, unmounted afterwards."""
    path = tmp_path / "target"
    path.mkdir()
    yield path
    while path.is_mount():
        linux.umount(str(path))
