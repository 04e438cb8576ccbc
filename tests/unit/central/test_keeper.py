"""The process that keeps the data of steps."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from piolet.central import keeper
from piolet.observe.keepsettings import KeepConfig


def test_one_whose_service_was_killed_before_it_began_ends(tmp_path: Path) -> None:
    """Its parent is another process by then: here this one, and process 1 is not it."""
    keep = dataclasses.asdict(KeepConfig(directory=str(tmp_path)))
    said = json.dumps({"keep": keep, "store": "", "cluster": "alps"}).encode()
    command = [sys.executable, "-m", keeper.__name__, "1"]
    assert subprocess.run(command, check=False, timeout=60, input=said).returncode == 0
