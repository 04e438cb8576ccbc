"""What the mounter of users' SquashFS files says where it cannot mount; the mounting itself is for tests/cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import ContainerError
from piolet.container.fuse import Mounter


def test_a_squashfuse_that_is_not_there_is_not_taken_for_a_damaged_image(tmp_path: Path) -> None:
    image = tmp_path / "a.sqsh"
    image.write_bytes(b"hsqs" + bytes(92))
    with pytest.raises(ContainerError, match="/no/squashfuse is not there") as raised:
        Mounter("/no/squashfuse").mount(str(image), str(tmp_path))
    assert raised.value.hint == "an administrator installs squashfuse on the node"


def test_what_is_no_squashfs_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.sqsh").write_bytes(b"#!/bin/sh")
    with pytest.raises(ContainerError, match="is not a SquashFS file"):
        Mounter("/bin/sh").mount(str(tmp_path / "a.sqsh"), str(tmp_path))
