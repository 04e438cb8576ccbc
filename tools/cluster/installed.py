"""The programs of an installation from RPMs that lies below another root directory than ours.

Their first line names the environment's interpreter by the path that it has once installed. The cluster runs copies
that differ from them in that line alone; the environment itself finds its parts from wherever it lies.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.state import write_atomically

PROGRAMS = ("piolet", "pioletd", "piolet-imaged", "piolet-forward")
_HASHBANG = "#!/usr/lib/piolet/bin/python3 "


def write_programs(root: Path, directory: Path) -> None:
    """Write the programs of the installation below `root` into `directory`, which is made anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o755)
    for name in PROGRAMS:
        path = root / "usr" / "bin" / name
        text = path.read_text("utf-8")
        if not text.startswith(_HASHBANG):
            raise ClusterError(f"{path} does not begin with '{_HASHBANG}'", "was it installed from Piolet's RPMs?")
        write_atomically(directory / name, f"#!{root}{text.removeprefix('#!')}", 0o755)
