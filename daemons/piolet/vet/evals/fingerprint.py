"""What the node is made of: kernel, processors, memory, drivers, libraries. The odd one out is found by majority."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass

from piolet.api import PASS, Context, Eval, Verdict, parameter
from piolet.vet.evals import _files


@dataclass(frozen=True)
class Fingerprint(Eval):
    """Collects facts; a node alone always passes."""

    name = "fingerprint"
    text = "kernel, processors, memory, drivers and libraries are those of the other nodes"
    how = "facts of each node, compared by majority"
    source = "/proc, /sys, the files in 'files'"
    needs = "at least three nodes for a majority"
    better = "same"

    files: tuple[str, ...] = parameter((), text="files that must have the same content everywhere")
    ignore: tuple[str, ...] = parameter((), text="facts that may differ")

    def check(self, context: Context) -> Verdict:
        """Collect."""

        def read(name: str) -> str | None:
            return _files.text(context.path(name))

        cpu = (read("/proc/cpuinfo") or "").splitlines()
        memory = (read("/proc/meminfo") or "MemTotal: 0").split()
        facts = {
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()),
            "processor": next(
                (x.partition(":")[2].strip() for x in cpu if x.startswith(("model name", "CPU part"))), ""
            ),
            "processors": str(os.cpu_count()),
            # The kernel keeps a little for itself, and not always the same: whole gigabytes are compared.
            "memory_gb": str(round(int(memory[1]) * 1024 / 1e9)),
            "command_line": _digest(_without_root(read("/proc/cmdline") or "")),
            "nvidia_driver": read("/sys/module/nvidia/version") or "",
            "cxi_driver": read("/sys/module/cxi_ss1/version") or "",
            "mlx5_driver": read("/sys/module/mlx5_core/version") or "",
            "hugepages": read("/sys/kernel/mm/transparent_hugepage/enabled") or "",
            "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "",
        }
        for name in self.files:
            facts[name] = _content(context.path(name))
        for name in self.ignore:
            facts.pop(name, None)
        return Verdict(PASS, details={"same": facts})


def _without_root(line: str) -> str:
    """Return the kernel's command line without what is of one node: its disk and its address."""
    own = ("root=", "BOOT_IMAGE=", "ip=", "BOOTIF=", "resume=", "rd.luks", "hostname=")
    return " ".join(word for word in line.split() if not word.startswith(own))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(path: str) -> str:
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()[:16]
    except OSError as error:
        return error.strerror or "cannot be read"
