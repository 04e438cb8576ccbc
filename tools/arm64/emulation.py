"""Programs of aarch64 on this machine: the kernel hands them to qemu-user while `registered` lasts.

The kernel has one table of foreign formats for the whole machine. Where aarch64 is in it already, that is used; what
is put into it here is taken out again.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.cluster.errors import ClusterError

TABLE = Path("/proc/sys/fs/binfmt_misc")
NAME = "qemu-aarch64"
# As Debian's package has it for systemd-binfmt: F opens the interpreter at once, so that a chroot need not hold it.
LINE = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")


def missing() -> list[str]:
    """Return what this machine lacks."""
    return [] if LINE.exists() else ["qemu-aarch64-static (qemu-user-static)"]


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Have the kernel run programs of aarch64. Raises ClusterError."""
    with contextlib.ExitStack() as stack:
        try:
            if not (TABLE / "register").exists():
                subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(TABLE)], check=True, timeout=10)
                stack.callback(subprocess.run, ["umount", str(TABLE)], check=False, timeout=10)
            entry = TABLE / NAME
            if not entry.exists():
                (TABLE / "register").write_text(LINE.read_text("ascii").strip(), "ascii")
                stack.callback(entry.write_text, "-1", "ascii")
            said = entry.read_text("ascii").splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            raise ClusterError(f"this kernel does not take foreign programs: {error}", "load binfmt_misc") from None
        flags = next((line.split()[-1] for line in said if line.startswith("flags:")), "")
        if "enabled" not in said or "F" not in flags:
            raise ClusterError(f"{entry} is not enabled, or opens its interpreter late", f"echo -1 >{entry}")
        yield
