"""A simulated installation of NVIDIA's driver: files at the places where a driver has them, none of NVIDIA's.

Its libraries have the names and sonames of the real ones and one function that says that they are simulated, and its
nvidia-smi is linked with one of them, so that it runs only where the dynamic loader finds that. There is no GPU in it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from piolet.hooks import nvidia

VERSION = "999.12.34"
SAYS = "SIMULATED driver 999.12.34, no GPU"
UUID = "GPU-00000000-5151-0000-0000-000000000000"
_SONAMES = {
    "cuda": "libcuda.so.1",
    "nvidia-ml": "libnvidia-ml.so.1",
    "nvidia-ptxjitcompiler": "libnvidia-ptxjitcompiler.so.1",
    "nvidia-nvvm": "libnvidia-nvvm.so.4",
}
_LIBRARY = 'const char *simulated_{name}(void) {{ return "{says}"; }}\n'
_SMI = """#include <stdio.h>
const char *simulated_nvidia_ml(void);
int main(void) { return puts(simulated_nvidia_ml()) < 0; }
"""


def install(root: Path, folder: str = "/usr/lib64", gpus: int = 2, *, whole: bool = False) -> Path:
    """Put a driver below `root`, its libraries into `folder`; return `root`. `whole`: as many of them as a real one."""
    where = Path(f"{root}{folder}")
    for path in (where, root / "usr/bin", root / "dev", root / "sys/module/nvidia", root / "etc"):
        path.mkdir(parents=True, exist_ok=True)
    others = {name: f"lib{name}.so.1" for name in nvidia.LIBRARIES} if whole else {}
    for name, soname in {**others, **_SONAMES}.items():
        source = _LIBRARY.format(name=name.replace("-", "_"), says=SAYS)
        _compile(source, where / f"lib{name}.so.{VERSION}", "-shared", "-fPIC", f"-Wl,-soname,{soname}")
    _compile(_SMI, root / "usr/bin/nvidia-smi", str(where / f"libnvidia-ml.so.{VERSION}"))
    (root / "sys/module/nvidia/version").write_text(f"{VERSION}\n")
    for number in range(gpus):
        (root / f"dev/nvidia{number}").touch()
        gpu = root / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        gpu.mkdir(parents=True, exist_ok=True)
        uuid = UUID[:-1] + str(number)
        (gpu / "information").write_text(f"Model: \t\t SIMULATED\nGPU UUID: \t {uuid}\nDevice Minor: \t {number}\n")
    return root


def _compile(source: str, output: Path, *words: str) -> None:
    command = ["cc", "-x", "c", "-", "-x", "none", *words, "-o", str(output)]
    subprocess.run(command, input=source, text=True, check=True)
