"""Compiles the fake libdcgm.so.4 (or .3): `python build.py DIRECTORY [NAME]`; `build` returns its path.

It tells of the same scripted GPUs as the fake NVML, from the same PIOLET_FAKE_NVML.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NVML = HERE.parent / "nvml"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]


def build(directory: Path, name: str = "libdcgm.so.4") -> Path:
    """Compile the library into `directory` under `name` and return its path."""
    target = directory / name
    unfinished = directory / f".{name}.{os.getpid()}"
    sources = [str(HERE / "dcgm.c"), *(str(NVML / f"{name}.c") for name in ("script", "load", "driven"))]
    command = ["gcc", *FLAGS, f"-I{NVML}", f"-Wl,-soname,{name}", "-o", str(unfinished), *sources, "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if result.returncode != 0:
        raise RuntimeError(f"the fake DCGM does not compile:\n{result.stderr}")
    unfinished.rename(target)
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:3]))
