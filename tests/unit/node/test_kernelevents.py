"""The kernel's lines as events. Lines as drivers wrote them; the entries around them are made here, not read."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from piolet.events.kinds import KINDS
from piolet.node.root.kernelevents import Line, events_of


def entry(text: str, priority: int = 4, number: int = 7) -> bytes:
    subsystem = "nvme" if text.startswith("nvme ") else "pci"
    return f"{priority},{number},5000000,-;{text}\n SUBSYSTEM={subsystem}\n".encode()


_PLACE = " (channel:0 slot:0 page:0x3c1 offset:0x0 grain:32 syndrome:0x0)"


def one(text: str) -> Line:
    (found,) = events_of(entry(text))
    assert found.body.keys() <= KINDS[found.kind].body.keys(), found
    assert "kernel" in KINDS[found.kind].sources
    return found


@pytest.mark.parametrize(
    ("text", "kind", "severity", "body"),
    [
        ("NVRM: Xid (PCI:0000:41:00): 48, pid=77, name=python, DBE", "gpu.xid", "fatal",
         {"xid": 48, "pci": "0000:41:00"}),
        ("NVRM: Xid (PCI:0000:41:00): 31, pid=77, name=python, Ch 0000000b", "gpu.xid", "info", {"xid": 31}),
        ("NVRM: Xid (PCI:0000:41:00): 13, pid=77, name=a, (GPC 1, TPC, Graphics SM Warp Exception on "
         "(GPC 3, TPC 1, SM 0): Out Of Range Address", "gpu.xid", "info", {"xid": 13, "gpc": 3, "tpc": 1}),
        ("NVRM: Xid (PCI:0000:41:00): 94, pid=1, name=x, Contained: SM", "gpu.xid", "warn", {"xid": 94}),
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up", "nvswitch.sxid", "fatal",
         {"sxid": 20034}),
        ("NVRM: GPU 0000:41:00.0: RmInitAdapter failed! (0x26:0x56:1474)", "device.error", "fatal",
         {"pci": "0000:41:00.0"}),
        ("pcieport 0000:00:1c.0: AER: Corrected error received: 0000:01:00.0", "pcie.aer", "info",
         {"pci": "0000:00:1c.0"}),
        ("pcieport 0000:00:1c.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer", "pcie.aer",
         "fatal", {"pci": "0000:00:1c.0"}),
        (f"EDAC MC0: 3 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0{_PLACE}", "memory.ecc", "info",
         {"corrected": 3}),
        (f"EDAC MC1: 1 UE memory read error on CPU_SrcID#0{_PLACE}", "memory.ecc", "fatal", {"uncorrected": 1}),
        ("mce: [Hardware Error]: CPU 5: Machine Check Exception: 5 Bank 4: be00", "memory.ecc", "fatal", {}),
        ("Memory failure: 0x1234: recovery action for dirty LRU page: Recovered", "memory.ecc", "warn", {}),
        ("nvme nvme0: I/O 22 QID 3 timeout, reset controller", "device.error", "warn", {}),
        ("mlx5_core 0000:17:00.0: poll_health:800:(pid 0): device's health compromised - reached miss count",
         "device.error", "fatal", {"pci": "0000:17:00.0"}),
        ("INFO: task a:b blocked for:1 more:77 blocked for more than 122 seconds.", "fs.blocked", "",
         {"processes": 1, "seconds": 122}),
        ("nfs: server nas1.cluster not responding, still trying", "fs.blocked", "", {}),
        ("LustreError: 11-0: scratch-OST000a-osc-ffff9a: This client was evicted by scratch-OST000a; in progress "
         "operations using this service will fail.", "fs.evicted", "", {}),
    ],
)  # fmt: skip
def test_lines_of_the_kernel(text: str, kind: str, severity: str, body: dict[str, Any]) -> None:
    found = one(text)
    assert (found.kind, found.severity) == (kind, severity)
    assert body.items() <= found.body.items()
    assert "python" not in str(found.body) and "pid=" not in str(found.body)


def test_a_gpu_that_fell_off_the_bus_is_lost_as_well() -> None:
    lines = events_of(entry("NVRM: Xid (PCI:0000:41:00): 79, pid=9, name=x, GPU has fallen off the bus."))
    assert [(line.kind, line.severity, line.device) for line in lines] == [
        ("gpu.xid", "fatal", "0000:41:00"), ("gpu.lost", "fatal", "0000:41:00"),
    ]  # fmt: skip
    found = one("NVRM: The NVIDIA GPU 0000:41:00.0 (PCI ID: 10de:20b0) installed in this system has fallen off the bus")
    assert (found.kind, found.body) == ("gpu.lost", {"pci": "0000:41:00"})


@pytest.mark.parametrize(
    ("text", "scope", "job", "step", "uid"),
    [
        ("MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/slurm/uid_1001/job_3,"
         "task_memcg=/slurm/uid_1001/job_3/step_0/task_0,task=a,pid=7,uid=1001", "cgroup", 3, "0", 1001),
        ("MEMCG,nodemask=(null),cpuset=u,mems_allowed=0,oom_memcg=/x,task_memcg=/system.slice/slurmstepd.scope/job_12/"
         "step_batch/user/task_0,task=job_9/step_1,pid=7,uid=1001", "cgroup", 12, "batch", 1001),
        ("MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/slurm/uid_1001/job_3/step_0+1,"
         "task_memcg=/slurm/uid_1001/job_3/step_0+1/task_0,task=a,pid=7,uid=1001", "cgroup", 3, "0+1", 1001),
        ("NONE,nodemask=(null),cpuset=/,mems_allowed=0-1,global_oom,task_memcg=/user.slice,task=a,pid=7,uid=0",
         "node", None, "", 0),
        ("MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/job_0/step_1,task_memcg=/job_99999999999/step_1,"
         "task=a,pid=7,uid=0", "cgroup", None, "", 0),
        # Groups that a user made below the slice that is that user's, and names of groups and of processes.
        ("MEMCG,nodemask=(null),cpuset=user.slice,mems_allowed=0,oom_memcg=/user.slice/user-1001.slice/x,task_memcg="
         "/user.slice/user-1001.slice/user@1001.service/slurmstepd.scope/job_5/step_0,task=a,pid=7,uid=1001",
         "cgroup", None, "", 1001),
        ("MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/user.slice/a,task_memcg=/slurmstepd.scope/job_5/"
         "step_0,task=a/b,task_memcg=/user.slice/a/b,task=a,pid=7,uid=1001", "cgroup", None, "", 1001),
        ("MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/x,task_memcg=/slurm/uid_1001/job_3/step_0,"
         "task=,pid=1,uid=0,pid=7,uid=1001", "cgroup", 3, "0", 1001),
        ("MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/x,task_memcg=/slurm/uid_1001/job_3/step_0,"
         "task=,task_memcg=/,pid=7,uid=1001", "cgroup", None, "", 1001),
    ],
)  # fmt: skip
def test_who_ran_out_of_memory(text: str, scope: str, job: int | None, step: str, uid: int | None) -> None:
    found = one(f"oom-kill:constraint=CONSTRAINT_{text}")
    assert (found.kind, found.body, found.job, found.step) == ("kernel.oom", {"scope": scope}, job, step)
    assert found.uid == uid


@pytest.mark.parametrize(
    ("rest", "pid"),
    [
        ("31, pid=77, name=python3, Ch 00000008", 77), ("13, pid='77', name=python3, Graphics SM", 77),
        ("31, pid='<unknown>', name=<unknown>, Ch 00000008", None), ("31, Ch 0000000b, intr 10000000", None),
        ("31, pid=77, name=x, pid=78, y, Ch 00000008", 77), ("31, pid=99999999999, name=x", None),
        ("43, name=x, pid=78, Ch 1", None),
        # What is no program's fault is nobody's, whoever used the GPU.
        ("48, pid=77, name=python3, DBE", None), ("94, pid=77, name=python3, Contained", None),
    ],
)  # fmt: skip
def test_whose_program_an_xid_is_of(rest: str, pid: int | None) -> None:
    found = one(f"NVRM: Xid (PCI:0000:41:00): {rest}")
    assert found.pid == pid and found.uid is None and "pid=" not in str(found.body)


def test_file_systems_are_the_subject() -> None:
    assert one("nfs: server nas1 not responding, timed out").subject == "fs:nas1"
    text = "LustreError: 167-0: work-MDT0000-mdc-ffff88: This client was evicted by work-MDT0000; in progress"
    assert one(text).subject == "fs:work"


@pytest.mark.parametrize(
    "data",
    [
        # A program that writes to /dev/kmsg gets another facility than the kernel's.
        entry("NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.", priority=12),
        entry("oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),global_oom,task_memcg=/a,task=x", priority=12),
        entry("Memory cgroup out of memory: Killed process 1 (x)"),
        entry("x NVRM: Xid (PCI:0000:41:00): 79"),
        entry("traps: oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/a,task=x[2] trap"),
        entry("nfs: server a b not responding"),
        entry("INFO: task x:1 blocked for more than 99 seconds. And more"),
        entry("eth0: link up"),
        b"", b";", b"4", b"\xff;\xff", b"4,1,1,-;", b"-1,1,1,-;Out of memory: Killed process 1 (x)",
        # The name of a process, at its longest, says where an XID 13 was.
        entry("NVRM: Xid (PCI:0000:41:00): pid=1, name=(GPC 3, TPC 1, ): 13"),
    ],
)  # fmt: skip
def test_what_is_none_of_it(data: bytes) -> None:
    assert events_of(data) == []


def test_a_process_chooses_no_place_of_an_xid() -> None:
    text = "NVRM: Xid (PCI:0000:41:00): 13, pid=77, name=(GPC 3, TPC 1, , Graphics Exception: ESR 0x1"
    assert "gpc" not in one(text).body


def test_whatever_is_in_the_log_is_an_event_or_none() -> None:
    """20,000 lines that are nearly those of drivers: nothing is raised, nothing takes long, and no key is unknown."""
    random_ = random.Random(18)
    good = [
        b"4,7,5000000,-;NVRM: Xid (PCI:0000:41:00): 13, pid=77, name=x, Graphics (GPC 3, TPC 1, SM 0): ESR",
        b"4,7,5000000,-;nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30",
        b"6,7,5000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,task_memcg=/job_3/step_0/t,task=x",
        b"3,7,5000000,-;EDAC MC0: 3 CE memory read error on CPU_SrcID#0_MC#0" + _PLACE.encode(),
        b"3,7,5000000,-;pcieport 0000:00:1c.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction",
    ]
    began, found = time.monotonic(), 0
    for _ in range(20_000):
        data = bytearray(random_.choice(good))
        for _ in range(random_.randrange(4)):
            at = random_.randrange(len(data))
            data[at : at + random_.randrange(3)] = random_.randbytes(random_.randrange(3))
        for line in events_of(bytes(data)):
            found += 1
            assert line.kind in KINDS and line.body.keys() <= KINDS[line.kind].body.keys()
            assert len(line.subject) <= 230 and len(str(line.body)) < 1000
    assert found > 1000 and time.monotonic() - began < 30
    assert events_of(b"4,7,5000000,-;oom-kill:constraint=CONSTRAINT_A," + b"," * 8000) == []
