"""Has what `make test` boots, if it can be had: python -m tools.kernels.ready

The kernel of Debian 12 by apt into build/kernels, some 70 MB once, and QEMU by tools/bootstrap.sh. What is in the way
is no failure: it is said in one line, and noted for the test that is left out then. `make test BOOT=0` leaves it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.kernels import guest, source

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "kernels"
KERNEL = next(kernel for kernel in source.KERNELS if kernel.name == "6.1")
SWITCH = "PIOLET_TEST_BOOT"
_NOTE = WORK / "left-out"


def missing() -> str:
    """Return why that kernel is not booted here; empty: nothing is in the way."""
    if "PIOLET_TEST_GUEST" in os.environ:
        return "this is a guest"
    if os.environ.get(SWITCH) == "0":
        return "BOOT=0 leaves it out"
    if os.geteuid() != 0:
        return "a guest shows files of every owner, which takes root"
    if not source.is_there(KERNEL, WORK):
        return _noted() or f"the kernel {KERNEL.name} is not there: python -m tools.kernels.ready fetches it"
    lacking = ", ".join(guest.missing())
    return f"not installed: {lacking}: tools/bootstrap.sh kernels" if lacking else ""


def _noted() -> str:
    try:
        return _NOTE.read_text("utf-8").strip()
    except OSError:
        return ""


def _prepare() -> None:
    """Fetch what is missing. The kernel first: where that mirror answers, QEMU can be had, too. Raises ClusterError."""
    if not source.is_there(KERNEL, WORK):
        print("Fetching the kernel of Debian 12", flush=True)
        source.fetch(KERNEL, WORK)
    if guest.missing() and subprocess.run([ROOT / "tools/bootstrap.sh", "kernels"], check=False).returncode:
        raise ClusterError("QEMU cannot be installed: see above")


def main() -> int:
    """Prepare, and say in a line what stands in the way."""
    if missing() and os.environ.get(SWITCH) != "0" and os.geteuid() == 0:
        WORK.mkdir(parents=True, exist_ok=True)
        _NOTE.unlink(missing_ok=True)
        try:
            _prepare()
        except (ClusterError, OSError) as error:
            _NOTE.write_text(f"{error}\n", "utf-8")
    if why := missing():
        print(f"The kernel of Debian 12 is not booted: {why}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
