"""The evals without a GPU: each fault of a node is told, and told right."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from piolet.api import FAIL, INCONCLUSIVE, NODE, PASS, Context, Inconclusive
from piolet.vet.catalogue import catalogue
from piolet.vet.evals import (
    _team,
    clock_skew,
    cpu_gemm,
    cxi,
    dns,
    env,
    fingerprint,
    gpu_gemm,
    infiniband,
    internet_access,
    leftovers,
    limits,
    memory_available,
    memory_bandwidth,
    mounts,
    network_pair,
    scratch_io,
)

from tests.simulators.timeserver import TimeServer

DATA = Path(__file__).resolve().parents[2] / "data" / "vet"


def context(root: str = "", seconds: float = 10.0, **environ: str) -> Context:
    return Context("n1", time.monotonic() + seconds, ("n1",), os.getuid(), environ=environ, root=root)


def test_env() -> None:
    one = env.Env({"A": "1", "B": None})
    assert one.check(context(A="1", B="")).outcome == PASS
    assert one.check(context(A="2", B="x")).reason == "A is '2', not '1'"
    assert one.check(context(A="1")).reason == "B is not set"


def meminfo(tmp_path: Path, available_kb: int) -> str:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1000000 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")
    return str(tmp_path)


def test_memory_available(tmp_path: Path) -> None:
    root = meminfo(tmp_path, 500_000)
    assert memory_available.MemoryAvailable(min_available=0.4).check(context(root)).outcome == PASS
    verdict = memory_available.MemoryAvailable(min_fraction=0.9).check(context(root))
    assert verdict.outcome == FAIL
    assert verdict.value == pytest.approx(0.512)
    with pytest.raises(Inconclusive):
        memory_available.MemoryAvailable().check(context(str(tmp_path / "none")))


def test_memory_that_holds_cached_files_can_be_had(tmp_path: Path) -> None:
    root = meminfo(tmp_path, 900_000)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_1\n")
    group = tmp_path / "sys/fs/cgroup/slurm/job_1"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("500000000\n")
    (group / "memory.current").write_text("450000000\n")
    assert memory_available.MemoryAvailable().check(context(root)).value == pytest.approx(0.05)
    (group / "memory.stat").write_text("anon 50000000\ninactive_file 300000000\nactive_file 100000000\n")
    assert memory_available.MemoryAvailable(min_available=0.3).check(context(root)).value == pytest.approx(0.35)


def test_limits() -> None:
    assert limits.Limits().check(context()).outcome == PASS
    assert "processors" in limits.Limits(min_cpus=100_000).check(context()).reason
    assert "nofile" in limits.Limits(min_nofile=1 << 60).check(context()).reason


def process(root: Path, pid: int, name: str, state: str, uid: int) -> None:
    (root / f"proc/{pid}").mkdir(parents=True)
    (root / f"proc/{pid}/stat").write_text(f"{pid} ({name}) {state} 1 1 1")
    (root / f"proc/{pid}/status").write_text(f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")


def test_leftovers(tmp_path: Path) -> None:
    process(tmp_path, 1, "init", "S", 0)
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert leftovers.Leftovers().check(context(str(tmp_path))).outcome == PASS
    process(tmp_path, 40, "slurmctld", "S", 64030)
    assert leftovers.Leftovers().check(context(str(tmp_path))).outcome == PASS
    process(tmp_path, 50, "py) D x", "R", 54321)
    verdict = leftovers.Leftovers().check(context(str(tmp_path)))
    assert verdict.reason == "1 processes of other users (py) D x 50 of 54321)"
    assert leftovers.Leftovers(allow_users=("54321",)).check(context(str(tmp_path))).outcome == PASS
    process(tmp_path, 51, "train", "S", 1_900_000_000)  # of a directory that numbers its users so
    verdict = leftovers.Leftovers(allow_users=("54321",)).check(context(str(tmp_path)))
    assert verdict.reason == "1 processes of other users (train 51 of 1900000000)"
    process(tmp_path, 60, "nfs", "D", 0)
    process(tmp_path, 61, "gone", "Z", 0)
    verdict = leftovers.Leftovers(max_foreign=9, max_zombies=0).check(context(str(tmp_path)))
    assert "1 zombies" in verdict.reason and "1 hanging processes (nfs 60" in verdict.reason
    (tmp_path / "dev/shm/big").write_bytes(b"x" * 100_000)
    verdict = leftovers.Leftovers(max_foreign=9, max_hanging=9, max_shm=0.00001).check(context(str(tmp_path)))
    assert "in /dev/shm" in verdict.reason


def test_what_waits_for_a_slow_disk_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in state D at each look, but was woken between them; the look ends with the last one that was."""
    (tmp_path / "dev/shm").mkdir(parents=True)
    for pid, name in ((1, "init"), (60, "fsync"), (61, "nfs")):
        process(tmp_path, pid, name, "S" if pid == 1 else "D", 0)
    now, woken = 0.0, [(60, 0.1)]

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        while woken and woken[0][1] <= now:
            with open(tmp_path / f"proc/{woken.pop(0)[0]}/status", "a") as file:
                file.write("voluntary_ctxt_switches:\t7\n")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    verdict = leftovers.Leftovers().check(context(str(tmp_path)))
    assert verdict.reason == "1 hanging processes (nfs 61 of root)"
    assert now == pytest.approx(1.0, abs=0.03)
    woken.extend([(60, now + 0.05), (61, now + 0.1)])
    assert leftovers.Leftovers().check(context(str(tmp_path))).outcome == PASS
    assert now == pytest.approx(1.1, abs=0.05)


def test_evals_that_look_run_beside_none_that_change_what_they_see() -> None:
    kinds = {name: entry.kind for name, entry in catalogue().entries.items()}
    for name in ("gpu", "gpu_health"):
        for other in ("cuda_kernel", "gpu_gemm", "gpu_memory_bandwidth"):
            assert not kinds[name].loads.isdisjoint(kinds[other].loads)
    assert not kinds["leftovers"].loads.isdisjoint(kinds["scratch_io"].loads)


def test_leftovers_that_cannot_be_seen(tmp_path: Path) -> None:
    process(tmp_path, 50, "mine", "R", os.getuid())
    with pytest.raises(Inconclusive, match="hidepid"):
        leftovers.Leftovers().check(context(str(tmp_path)))


def test_mounts(tmp_path: Path) -> None:
    assert mounts.Mounts(paths=(str(tmp_path),), writable=True).check(context()).outcome == PASS
    assert list(tmp_path.iterdir()) == []
    assert (
        mounts.Mounts(paths=("${WHERE}/x",))
        .check(context(WHERE=str(tmp_path)))
        .reason.endswith("No such file or directory")
    )
    assert "is not mounted" in mounts.Mounts(paths=(str(tmp_path),), mounted=True).check(context()).reason
    assert "GB free" in mounts.Mounts(paths=(str(tmp_path),), min_free=1e9).check(context()).reason
    with pytest.raises(Inconclusive, match="not set"):
        mounts.Mounts(paths=("$NOWHERE",)).check(context())


def test_a_hung_mount_is_named_and_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, start = mounts._look, mounts._start
    hung = str(tmp_path / "hung")

    def sometimes(path: str, write: bool) -> str:
        if path == hung:
            time.sleep(1000)
        return look(path, write)

    def begin(path: str, write: bool) -> tuple[int, int]:
        """What is well has answered when the look at the hung one begins, on a machine that is busy as well."""
        child = start(path, write)
        assert path == hung or select.select([child[1]], [], [], 60)[0]
        return child

    monkeypatch.setattr(mounts, "_look", sometimes)
    monkeypatch.setattr(mounts, "_start", begin)
    started = time.monotonic()
    verdict = mounts.Mounts(paths=(hung, str(tmp_path)), answer=0.3).check(context())
    assert time.monotonic() - started < 20
    assert verdict.outcome == FAIL
    assert verdict.reason == f"{hung} did not answer within 0.3 s"
    # The eval's own time was up first: the file system may be well. What is wrong besides is a fault all the same.
    with pytest.raises(Inconclusive, match=f"there was no time to wait for {hung}"):
        mounts.Mounts(paths=(hung, str(tmp_path)), answer=20).check(context(seconds=0.3))
    verdict = mounts.Mounts(paths=(hung, "/not/there"), answer=20).check(context(seconds=0.3))
    assert verdict.reason == "/not/there: No such file or directory"


@pytest.mark.parametrize(("ahead", "outcome"), [(0.0, PASS), (3.0, FAIL), (-3.0, FAIL)])
def test_clock_offset(ahead: float, outcome: str) -> None:
    with TimeServer(ahead) as server:
        verdict = clock_skew.ClockSkew(max_offset=0.5, server=server.name_of).check(context())
    assert verdict.outcome == outcome
    assert verdict.value == pytest.approx(abs(ahead), abs=0.2)


def test_a_time_server_that_is_silent_judges_nobody() -> None:
    with TimeServer(0.0, silent=True) as server, pytest.raises(Inconclusive, match="does not answer"):
        clock_skew.ClockSkew(server=server.name_of).check(context(seconds=1.0))
    with pytest.raises(Inconclusive, match="cannot reach"):
        clock_skew.ClockSkew(server="host:port").check(context())


def test_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dns.Dns(names=("localhost",), max_time=5).check(context()).outcome == PASS

    def resolve(name: str, *args: object, **more: object) -> list[object]:
        if name == "slow":
            time.sleep(30)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert dns.Dns(names=("x",)).check(context()).reason == "x: Name or service not known"
    started = time.monotonic()
    assert "slow: no answer within 0.2 s" in dns.Dns(names=("slow",), max_time=0.1).check(context()).reason
    assert time.monotonic() - started < 3
    assert dns.Dns(names=("slow",), max_time=9).check(context(seconds=0.1)).outcome == INCONCLUSIVE


def test_internet_access() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert internet_access.InternetAccess("127.0.0.1", port).check(context()).outcome == PASS
    assert "Connection refused" in internet_access.InternetAccess("127.0.0.1", port).check(context()).reason
    verdict = internet_access.InternetAccess("192.0.2.1", 9).check(context(seconds=0.2))
    assert verdict.outcome == FAIL


def test_scratch_io(tmp_path: Path) -> None:
    verdict = scratch_io.ScratchIo(path="$S", size=8e6).check(context(S=str(tmp_path)))
    assert verdict.outcome == PASS
    assert verdict.value is not None and verdict.value > 0
    assert list(tmp_path.iterdir()) == []
    slow = scratch_io.ScratchIo(path=str(tmp_path), size=8e6, min_write=1e6).check(context())
    assert slow.outcome == FAIL
    missing = scratch_io.ScratchIo(path=str(tmp_path / "none")).check(context())
    assert "cannot create a file" in missing.reason
    with pytest.raises(Inconclusive, match="time was up"):
        scratch_io.ScratchIo(path=str(tmp_path), size=1e12).check(context(seconds=0.05))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounting a small tmpfs")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    verdict = scratch_io.ScratchIo(path=str(small_disk), size=64e6).check(context())
    assert (verdict.outcome, verdict.reason) == (FAIL, f"{small_disk} is full")


def test_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    same = fingerprint.Fingerprint(files=(str(file), "/none"), ignore=("governor",)).check(context()).details["same"]
    assert same["kernel"] == os.uname().release
    assert same["/none"] == "No such file or directory"
    assert "governor" not in same
    file.write_text("y")
    again = fingerprint.Fingerprint(files=(str(file),)).check(context()).details["same"]
    assert again[str(file)] != same[str(file)]


def test_cpu_gemm() -> None:
    verdict = cpu_gemm.CpuGemm(size=64, repeats=1).check(context())
    assert verdict.outcome == PASS
    assert verdict.value is not None and verdict.value > 0
    assert cpu_gemm.CpuGemm(size=64, repeats=1, min_rate=1e9).check(context()).outcome == FAIL


@pytest.mark.parametrize(("wrong", "off"), [(2.0, "2"), (float("nan"), "nan")])
def test_cpu_gemm_that_multiplies_wrongly(monkeypatch: pytest.MonkeyPatch, wrong: float, off: str) -> None:
    """One number of a product is not right: a fault of the node, and no lack of memory."""
    right = numpy.matmul

    def matmul(a: Any, b: Any, out: Any) -> None:
        right(a, b, out=out)
        out[3, 4] += wrong

    monkeypatch.setattr(numpy, "matmul", matmul)
    verdict = cpu_gemm.CpuGemm(size=64, repeats=1).check(context())
    core = min(os.sched_getaffinity(0))
    said = f"core {core} multiplies wrongly: the sum of the product is off by {off}"
    assert (verdict.outcome, verdict.reason, verdict.whose) == (FAIL, said, NODE)


def test_a_member_that_dies_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory is short."""
    monkeypatch.setattr(numpy, "matmul", lambda *_, **__: os.kill(os.getpid(), 9))
    with pytest.raises(Inconclusive, match="died, probably of too little memory"):
        cpu_gemm.CpuGemm(size=64, repeats=1).check(context())


def test_cpu_gemm_compares_with_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores of 10 and 20 GFLOP/s: their median is 15."""
    flop = 2.0 * 64**3
    monkeypatch.setattr(_team, "processors", lambda: [0, 1])
    monkeypatch.setattr(_team, "rounds", lambda *_: [(1.0, [flop / 10e9, flop / 20e9])])
    verdict = cpu_gemm.CpuGemm(size=64, repeats=1, max_spread=0.3).check(context())
    assert verdict.outcome == FAIL and "core 0 is 33% slower" in verdict.reason
    assert verdict.details["median"] == pytest.approx(15.0) and verdict.limit == pytest.approx(10.5)
    assert cpu_gemm.CpuGemm(size=64, repeats=1, max_spread=0.4).check(context()).outcome == PASS


def test_memory_bandwidth() -> None:
    verdict = memory_bandwidth.MemoryBandwidth(size=8e6, rounds=2).check(context())
    assert verdict.outcome == PASS
    assert memory_bandwidth.MemoryBandwidth(size=8e6, min_bandwidth=1e6).check(context()).outcome == FAIL
    with pytest.raises(Inconclusive, match="do not fit"):
        memory_bandwidth.MemoryBandwidth(size=1e15).check(context())


def test_measurements_end_in_time() -> None:
    with pytest.raises(Inconclusive, match="time was up"):
        cpu_gemm.CpuGemm(size=4096, repeats=100).check(context(seconds=0.3))


def test_what_needs_others_or_hardware_judges_nobody() -> None:
    with pytest.raises(Inconclusive, match="no other node"):
        network_pair.NetworkPair().check(context())
    with pytest.raises(Inconclusive, match="torch"):
        gpu_gemm.GpuGemm().check(context())


@pytest.mark.parametrize(
    ("tree", "outcome", "reason"),
    [
        ("ib-good", PASS, ""),
        ("ib-down", FAIL, "mlx5_1 port 1 is DOWN (Polling), not ACTIVE"),
        ("ib-slow", FAIL, "mlx5_0 port 1 runs at 100 Gbit/s, 400 are wanted"),
        ("ib-errors", PASS, ""),  # seven symbol errors, in an unknown time
    ],
)
def test_infiniband(tree: str, outcome: str, reason: str) -> None:
    verdict = infiniband.Infiniband(min_rate=400).check(context(str(DATA / tree)))
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_infiniband_judges_no_ethernet(tmp_path: Path) -> None:
    """RoCE adapters are in the same place. With no port judged there is no pass."""
    ports = tmp_path / "sys/class/infiniband"
    shutil.copytree(DATA / "ib-good/sys/class/infiniband", ports)
    for layer in ports.glob("mlx5_1/ports/*/link_layer"):
        layer.write_text("Ethernet\n")
    where = context(str(tmp_path))
    assert infiniband.Infiniband().check(where).outcome == PASS
    verdict = infiniband.Infiniband(devices=("mlx5_0", "mlx5_1")).check(where)
    assert (verdict.outcome, verdict.reason) == (FAIL, "mlx5_1 has no InfiniBand port")
    for layer in ports.glob("*/ports/*/link_layer"):
        layer.write_text("Ethernet\n")
    with pytest.raises(Inconclusive, match="no adapter has an InfiniBand port"):
        infiniband.Infiniband().check(where)


@pytest.mark.parametrize(
    ("tree", "outcome", "reason"),
    [
        ("cxi-good", PASS, ""),
        ("cxi-down", FAIL, "the link of cxi1 is down"),
        ("cxi-slow", FAIL, "cxi1 runs at 100 Gbit/s, 200 are wanted"),
        ("cxi-flaps", FAIL, "the link of hsn1 went down 42 times"),
    ],
)
def test_cxi(tree: str, outcome: str, reason: str) -> None:
    verdict = cxi.Cxi(count=2, min_speed=200).check(context(str(DATA / tree)))
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_fabrics_that_are_not_there(tmp_path: Path) -> None:
    for one in (infiniband.Infiniband(), cxi.Cxi()):
        with pytest.raises(Inconclusive, match="there are no"):
            one.check(context(str(tmp_path)))
    assert infiniband.Infiniband(devices=("mlx5_0",)).check(context(str(tmp_path))).reason == "mlx5_0 is missing"
    assert cxi.Cxi(count=4).check(context(str(tmp_path))).reason == "there are 0 Slingshot adapters, not 4"
