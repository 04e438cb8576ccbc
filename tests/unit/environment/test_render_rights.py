"""What a user may not read is refused at submit time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

UNREADABLE = """
import os, sys
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.definition import Image
from piolet.submission.dependencies import Host
from piolet.images.info import ImageInfo
from piolet.environment.render import render
from piolet.base.errors import PioletError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    render(sys.argv[1], Host({}, "/"), EnvironmentConfig(), lambda r: ImageInfo(Image(r, "site")))
    print("rendered")
except PioletError as error:
    print(error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_source_that_this_user_cannot_read() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        for path, mode in (("closed", 0o700), ("through", 0o711)):
            (top / path).mkdir()
            (top / path).chmod(mode)
        (top / "secret").write_text("x")
        (top / "secret").chmod(0o600)
        said = {}
        for path in ("closed", "through", "secret", "closed/x"):
            (top / "x.toml").write_text(f'image = "i"\nmounts = ["{top}/{path}:/x"]\n')
            run = subprocess.run(
                [sys.executable, "-c", UNREADABLE, f"{top}/x.toml"],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            said[path] = run.stdout.strip()
        assert said == {
            "closed": f"the source of the mount, {top}/closed, cannot be read by you",
            "through": "rendered",
            "secret": f"the source of the mount, {top}/secret, cannot be read by you",
            "closed/x": f"the source of the mount, {top}/closed/x, cannot be used: Permission denied",
        }
