"""Which processes are believed to be slurmstepd."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from piolet.steps import slurmstepd


def test_anybodys_process_does_not_pass_for_a_slurmstepd() -> None:
    """The title alone is not believed: not of a user, and not of root's if the program is another."""
    forged = subprocess.Popen(["slurmstepd: [991.0]", "30"], executable="/bin/sleep")
    try:
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{forged.pid}/cmdline").read_bytes().startswith(b"slurmstepd: [991.0]"):
            assert time.monotonic() < deadline, "the process has not taken its title"
        assert "991.0" not in slurmstepd.running()
    finally:
        forged.kill()
        forged.wait()
