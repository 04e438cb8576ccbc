"""Lines of the kernel's that begin with a process's name, and end with a file's: both are chosen by users."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest
from piolet.node.root import kernelevents, kernellog

from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    "file", ["x", "NVRM: Xid (PCI:0000:41:00): 79, off", "UE a on a (b page:0x1 offset:0x0 grain:32)"]
)
@pytest.mark.parametrize(
    "name",
    ["EDAC MC0: 1 UE ", "EDAC a: 1 UE x", "EDAC MC0: 1 UE", "NVRM: Xid (PCI:", "NVRM: Xid ", "NVRM: GPU 0: ",
     "mlx5_core x", "mlx5_core: ", "nvme nvme0: ", "nvme nvme0:", "a 0:: AER: ", "a 0000:00:1c.0:", "amdgpu: ",
     "cxi_a: ", "hfi1_0: ", "mce: [Hardware ", "mce: ", "nvidia-nvswitch", "CPU0: Core temp", "[Hardware Error",
     "{1}[Hardware Er", "NVRM: loading N", "Memory failure:", "NVRM: The NVIDI"],
)  # fmt: skip
def test_lines_that_begin_with_a_name_are_of_no_device(name: str, file: str) -> None:
    """As the kernel wrote them, of processes that users called so."""
    assert len(name) <= 15
    for rest in (
        f"[16409]: segfault at 0 ip 00007f7eecc0ead8 sp 00007ffcd5f856b8 error 4 in {file}[167ad8,7f7ee+156000]",
        f" invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0 {file}",
        f": page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset={file},mems_allowed=0",
        f"[16409] general protection fault ip:7f7 sp:7ff error:0 in {file}[7f7eecacd000+156000]",
        f"[16409] trap invalid opcode ip:7f7 sp:7ff error:0 in {file}[7f7eecacd000+156000]",
        f" ({16409}): drop_caches: 3", f"(16409): VM86 {file}",
    ):  # fmt: skip
        assert kernellog.of_device(f"6,1021,3159757210,-;{name}{rest}\n".encode()) is None


def _tells_of_crashes() -> bool:
    """Return whether the kernel writes a line of a process that crashes, where this process can read it."""
    switch = Path("/proc/sys/debug/exception-trace")
    return os.access("/dev/kmsg", os.R_OK) and switch.exists() and switch.read_text().strip() != "0"


@pytest.mark.skipif(not _tells_of_crashes(), reason="no line of a crash to be read: debug.exception-trace, /dev/kmsg")
def test_a_process_that_crashes_says_nothing_of_a_device(tmp_path: Path) -> None:
    """Its name and its file's are those of a driver's line, and the kernel writes both down."""
    source, program = tmp_path / "x.c", tmp_path / "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus."
    source.write_text(
        '#include <sys/prctl.h>\nint main(int many, char **words) {\n'
        "prctl(PR_SET_NAME, words[many - 1]);\n*(volatile int *)0 = 1;\nreturn 0; }\n"
    )  # fmt: skip
    subprocess.run(["cc", "-o", str(program), str(source)], check=True)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        for name in ("EDAC a: 1 UE x", "EDAC MC0: 1 UE ", "NVRM: Xid (PCI:", "mlx5_core x"):
            found: list[bytes] = []

            def crashed(name: str = name, found: list[bytes] = found) -> bool:
                """Crash it. Of many crashes at a time the kernel leaves lines out (printk_ratelimit)."""
                assert subprocess.run([str(program), name], check=False).returncode == -signal.SIGSEGV
                while select.select([log], [], [], 1)[0]:
                    with contextlib.suppress(BrokenPipeError):  # lines were overwritten before they were read
                        entry = os.read(log, 8192)
                        found += [entry] if entry.partition(b";")[2].startswith(name.encode() + b"[") else []
                    if found:
                        return True
                return False

            wait_until(crashed, 60, f"the kernel's line of {name!r}")
            assert kernelevents.events_of(found[0]) == []
    finally:
        os.close(log)
