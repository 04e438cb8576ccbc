"""Compiles the fake libnvidia-ml.so.1: `python build.py DIRECTORY` puts it there, `build` returns its path.

A process that has DIRECTORY in LD_LIBRARY_PATH, and PIOLET_FAKE_NVML naming a script, sees scripted GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "libnvidia-ml.so.1"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]


def build(directory: Path) -> Path:
    """Compile every C file that is here into `directory` and return the library's path."""
    target = directory / NAME
    unfinished = directory / f".{NAME}.{os.getpid()}"
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    command = ["gcc", *FLAGS, f"-Wl,-soname,{NAME}", "-o", str(unfinished), *sources, "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if result.returncode != 0:
        raise RuntimeError(f"the fake NVML does not compile:\n{result.stderr}")
    unfinished.rename(target)
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
