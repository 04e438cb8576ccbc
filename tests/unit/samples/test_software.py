"""Versions of a node's kernel and driver."""

from __future__ import annotations

import os
from pathlib import Path

from piolet.samples.software import software


def test_versions(tmp_path: Path) -> None:
    """Of the driver where it is loaded; a file that is none, or too long, says nothing that hangs."""
    assert software(str(tmp_path)) == {"kernel": os.uname().release}
    place = tmp_path / "sys/module/nvidia"
    place.mkdir(parents=True)
    (place / "version").write_text("580.82.07\n")
    assert software(str(tmp_path))["driver"] == "580.82.07"
    (place / "version").unlink()
    os.mkfifo(place / "version")
    assert "driver" not in software(str(tmp_path))
