"""Collectors one by one: which devices, which is chosen and why, what they leave behind, and the host's own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from piolet.api import HOST_QUANTITIES, Target, Unavailable
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.choose import choose
from piolet.samples.collectors.host import HostCollector
from piolet.samples.dataset import Dataset

from tests.score import simulation

TWO = "gpu\nload matmul 100\ngpu\nload copy 100\n"


def run(libraries: Path, tmp_path: Path, script: str, code: str) -> str:
    """Run Python where the scripted GPUs are, and return what it printed."""
    path = tmp_path / "script"
    path.write_text(script)
    prefix = "from piolet.api import Target\nfrom piolet.samples.choose import choose\n"
    done = subprocess.run(
        [sys.executable, "-c", prefix + code],
        env=simulation.environment(libraries, path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


A100 = TWO.replace("gpu\n", "gpu\nname NVIDIA A100-SXM4-80GB\n")
CHOICE = (
    "c, why = choose(Target({gpus}), {wanted!r})\nprint([x.name for x in c], [d.uuid[:12] for d in c[0].devices], why)"
)


def test_gpm_comes_first_and_the_rest_is_explained(libraries: Path, tmp_path: Path) -> None:
    """All three are there: DCGM would take from the user's profilers what they need."""
    got = run(libraries, tmp_path, TWO, CHOICE.format(gpus="None", wanted="auto"))
    assert got.startswith("['gpm', 'host'] ['GPU-00000000', 'GPU-00000001']")
    assert "'dcgm': 'gpm was there'" in got


@pytest.mark.parametrize(
    ("script", "chosen", "reason"),
    [
        (A100, "dcgm", "A100-SXM4-80GB has no GPM"),
        ("fail dcgmInit 7\n" + A100, "nvml", "dcgmInit: Initialization error"),
        ("fail engine 21\nfail dcgmStartEmbedded 7\n" + A100, "nvml", "no host engine answers"),
        ("fail dcgmWatchFields 5\n" + A100, "nvml", "dcgmWatchFields: Setting not configured"),
        ("fail dcgmInit 7\nfail nvmlInitWithFlags 9\n" + TWO, "host", "NVML does not start: Driver Not Loaded"),
    ],
)
def test_what_is_not_there_is_gone_without(
    libraries: Path, tmp_path: Path, script: str, chosen: str, reason: str
) -> None:
    """The next source is taken, and the data set says why."""
    got = run(libraries, tmp_path, script, CHOICE.format(gpus="None", wanted="auto"))
    assert got.startswith(f"['{chosen}'") and reason in got, got


def test_an_embedded_engine_where_none_runs(libraries: Path, tmp_path: Path) -> None:
    """And the source says so."""
    code = "c, _ = choose(Target(None), 'dcgm')\nprint(c[0].source, '|', c[0].simulated)"
    assert run(libraries, tmp_path, "fail engine 21\n" + TWO, code) == "libdcgm.so.4, embedded engine | scripted GPUs\n"


@pytest.mark.parametrize("collector", ["dcgm", "gpm", "nvml"])
def test_only_the_steps_gpus(libraries: Path, tmp_path: Path, collector: str) -> None:
    """By UUID or by index, in the step's order; one that is not there is a reason, no error."""
    one = "('GPU-00000001-0000-0000-0000-000000000000',)"
    for gpus, found in ((one, "['GPU-00000001']"), ("('1', '0')", "['GPU-00000001', 'GPU-00000000']")):
        got = run(libraries, tmp_path, TWO, CHOICE.format(gpus=gpus, wanted=collector))
        assert got.startswith(f"['{collector}', 'host'] {found}"), got
    got = run(libraries, tmp_path, TWO, CHOICE.format(gpus="('GPU-nowhere',)", wanted=collector))
    assert got.startswith("['host']") and "no GPU GPU-nowhere" in got, got
    got = run(libraries, tmp_path, TWO, CHOICE.format(gpus="()", wanted="auto"))
    assert got.startswith("['host']") and "the step has no GPU" in got


MIG = "gpu\nload idle 100\ninstance\nload matmul 100\ninstance\nload copy 100\ngpu\nload spin 100\n"


def test_mig_instances_are_read_each_by_itself(simulate: Callable[..., Dataset]) -> None:
    """An instance has its own counters, not its GPU's, and none of what NVML tells of whole GPUs only."""
    data = simulate(MIG, 10, 0.5)
    devices = data.nodes[0].facts.devices
    assert [(device["uuid"][:17], device["mig"]) for device in devices] == [
        ("MIG-00000000-0001", True),
        ("MIG-00000000-0002", True),
        ("GPU-00000003-0000", False),
    ]
    tensor: dict[int, list[float]] = {0: [], 1: [], 2: []}
    power: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for chunk in data.nodes[0].chunks(["tensor", "power"]):
        for device, pipe, watts in zip(chunk["device"], chunk["tensor"], chunk["power"], strict=True):
            tensor[int(device)].append(float(pipe))
            power[int(device)].append(float(watts))
    assert min(tensor[0]) > 0.5 and max(tensor[1]) == max(tensor[2]) == 0
    assert all(map(math.isnan, power[0] + power[1])) and min(power[2]) > 0
    assert data.nodes[0].facts.quality["blanks"]["power"]["not told per MIG instance"] >= 2 * 19


def test_a_step_with_one_instance_sees_only_that_one(libraries: Path, tmp_path: Path) -> None:
    """And DCGM would tell of the whole GPU, so it is not taken. A number names none: it is not NVML's."""
    one = "('MIG-00000000-0002-0000-0000-000000000000',)"
    got = run(libraries, tmp_path, MIG, CHOICE.format(gpus=one, wanted="auto"))
    assert got.startswith("['gpm', 'host'] ['MIG-00000000'] {'dcgm': 'gpm was there'"), got
    for collector, reason in (
        ("dcgm", "MIG instances are read through GPM"),
        ("gpm", "their numbers do not say which"),
    ):
        for number in "0", "1", "/dev/nvidia0":
            got = run(libraries, tmp_path, MIG, CHOICE.format(gpus=f"('{number}',)", wanted=collector))
            assert got.startswith("['host'] []") and reason in got, got
    got = run(libraries, tmp_path, MIG, CHOICE.format(gpus="None", wanted="auto"))
    assert got.startswith("['gpm', 'host'] ['MIG-00000000', 'MIG-00000000', 'GPU-00000003']"), got


@pytest.mark.parametrize("engine", ["", "fail engine 21\n"])
def test_two_steps_share_dcgm_and_leave_nothing_behind(libraries: Path, tmp_path: Path, engine: str) -> None:
    """Neither the end of one step nor a third that cannot be opened ends the other's counters; then nothing is left."""
    code = """
import ctypes, time
lib = ctypes.CDLL("libdcgm.so.4")
one, two = (choose(Target(None), "dcgm")[0][0] for _ in range(2))
both = lib.piolet_dcgm_left()
print(one.name, two.name, choose(Target(("GPU-nowhere",)), "dcgm")[1]["dcgm"])
one.close()
print(both == 2 * lib.piolet_dcgm_left() > 0)
end = time.monotonic() + 5
while not (got := two.read(time.monotonic_ns())) and time.monotonic() < end:
    time.sleep(0.1)
print(len({reading.device for reading in got}))
two.close()
print(lib.piolet_dcgm_left())
again = choose(Target(None), "dcgm")[0][0]
print(again.name, again.source == two.source)
again.close()
"""
    got = run(libraries, tmp_path, engine + TWO, code).splitlines()
    assert got == ["dcgm dcgm DCGM knows no GPU GPU-nowhere", "True", "2", "0", "dcgm True"]


def test_counters_that_fail_for_a_while_do_not_stretch_the_rest(libraries: Path, tmp_path: Path) -> None:
    """Afterwards they tell of all the time since; what else there is was told second by second."""
    code = """
(gpm,) = [each for each in choose(Target(("0",)), "gpm")[0] if each.name == "gpm"]
real, spans = gpm.nvml.nvmlGpmSampleGet, []
power, sm = gpm.quantities.index("power"), gpm.quantities.index("sm")

def fail(*_):
    raise gpm.nvml.NVMLError(999)

for second in range(1, 6):
    gpm.nvml.nvmlGpmSampleGet = fail if second in (3, 4) else real
    for reading in gpm.read(second * 10**9):
        known = [reading.values[place] == reading.values[place] for place in (power, sm)]
        print(second, round(reading.span), *(["power"] * known[0] + ["sm"] * known[1]))
"""
    got = run(libraries, tmp_path, TWO, code).splitlines()
    assert got == ["2 1 power sm", "3 1 power", "4 1 power", "5 3 sm", "5 1 power"]


def test_dcgm_gives_its_last_rows(simulate: Callable[..., Dataset]) -> None:
    """All that its engine has seen until the end: it is asked twice a second, and samples ten times."""
    (chunk,) = simulate("gpu\nload matmul 100\n", 3.4, 0.1, "dcgm").nodes[0].chunks(["tensor"])
    assert chunk["end"].max() - chunk["end"].min() >= 3.2e9
    assert simulation.BASE * 10**9 + 3.4e9 - chunk["end"].max() < 0.15e9


def test_an_unknown_collector_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(ScoreError, match="there is no collector 'magic'"):
        choose(Target(), "magic")


def group(root: Path, second: int) -> None:
    """Write what the kernel would show of a cgroup after some seconds of work."""
    directory = root / "sys/fs/cgroup/job_1/step_0"
    directory.mkdir(parents=True, exist_ok=True)
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/net/eth0/device").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/net/bond0").mkdir(parents=True, exist_ok=True)
    (root / "proc/stat").write_text("cpu  1 2 3 4 5 6 7 8\n")
    (directory / "cpu.stat").write_text(f"usage_usec {second * 2_500_000}\nthrottled_usec {second * 100_000}\n")
    (directory / "memory.current").write_text("3000000000\n")
    (directory / "memory.stat").write_text("anon 2000000000\nfile 5\n")
    (directory / "io.stat").write_text(
        f"8:0 rbytes={second * 1000} wbytes={second * 50} rios=1\n8:16 rbytes=0 wbytes=0\n"
    )
    for name in ("cpu", "memory", "io"):
        (directory / f"{name}.pressure").write_text(f"some avg10=0.00 total={second * 200_000}\nfull avg10=0 total=0\n")
    head = "Inter-|   Receive\n face |bytes\n"
    zeros = " 0" * 6
    counts = f"{second * 700} 0{zeros} {second * 300} 0{zeros}"
    (root / "proc/net/dev").write_text(f"{head}    lo: 999 0{zeros} 999\n  eth0: {counts}\n bond0: {counts}\n")


def test_the_host_is_measured_by_its_cgroup(tmp_path: Path) -> None:
    """Counters become rates over the span; what went through a bond went through its devices."""
    group(tmp_path, 10)
    host = HostCollector()
    host.open(Target(groups=(("", "/sys/fs/cgroup/job_1/step_0"),), root=str(tmp_path)))
    assert host.read(10 * 10**9) == []
    group(tmp_path, 12)
    (reading,) = host.read(12 * 10**9)
    got = dict(zip(host.quantities, reading.values, strict=True))
    assert (reading.device, reading.span, len(got)) == (-1, 2.0, len(HOST_QUANTITIES))
    wanted = {"cpu": 2.5, "cpu_throttled": 0.1, "memory": 3e9, "memory_anon": 2e9, "read": 1000, "write": 50}
    wanted |= {"net_rx": 700, "net_tx": 300, "cpu_pressure": 0.2, "memory_pressure": 0.2, "io_pressure": 0.2}
    wanted |= {"nic": math.nan, "nic_rate": math.nan}  # no interface says how fast it is
    assert got == pytest.approx(wanted, nan_ok=True) and not host.blanks
    assert host.source == "the step, by control groups of version 2"


def test_a_part_that_the_kernel_does_not_tell_is_missing(tmp_path: Path) -> None:
    """PSI may be off, the io controller not delegated: the rest still is measured."""
    group(tmp_path, 10)
    (tmp_path / "sys/fs/cgroup/job_1/step_0/io.stat").unlink()
    host = HostCollector()
    host.open(Target(groups=(("", "/sys/fs/cgroup/job_1/step_0"),), root=str(tmp_path)))
    host.read(10**9)
    group_again = tmp_path / "sys/fs/cgroup/job_1/step_0/cpu.stat"
    group_again.write_text("usage_usec 30000000\n")
    (reading,) = host.read(2 * 10**9)
    got = dict(zip(host.quantities, reading.values, strict=True))
    assert got["cpu"] == pytest.approx(5) and got["read"] != got["read"]
    assert any(name == "io" and "controller io" in reason for name, reason in host.blanks)
    with pytest.raises(Unavailable):
        HostCollector().open(Target(root=str(tmp_path / "nothing")))


def tree(root: Path, files: Mapping[str, str]) -> None:
    """Write files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def measured(root: Path, groups: Mapping[str, str], first: Mapping[str, str], then: Mapping[str, str]) -> HostCollector:
    """Return the collector after two looks, two seconds apart; what it gave is in `got` of it."""
    base = {"proc/stat": "cpu  1 2 3 4 5 6 7 8\n", "proc/net/dev": "Inter-|\n face |\n"}
    tree(root, base | dict(first))
    host = HostCollector()
    host.open(Target(groups=tuple(groups.items()), root=str(root)))
    assert host.read(10**9) == []
    tree(root, then)
    (reading,) = host.read(3 * 10**9)
    host.got = dict(zip(host.quantities, reading.values, strict=True))  # type: ignore[attr-defined]
    return host


# As SLES 15 and RHEL 8 show it: cpu and cpuacct are one hierarchy, and its two files are in one directory.
STEP_1 = "slurm/uid_1001/job_7/step_0"
V1 = {
    "cpu": f"/sys/fs/cgroup/cpu,cpuacct/{STEP_1}",
    "cpuacct": f"/sys/fs/cgroup/cpu,cpuacct/{STEP_1}",
    "memory": f"/sys/fs/cgroup/memory/{STEP_1}",
    "blkio": f"/sys/fs/cgroup/blkio/{STEP_1}",
    "freezer": f"/sys/fs/cgroup/freezer/{STEP_1}",
}
MEMORY_1 = {
    f"sys/fs/cgroup/memory/{STEP_1}/memory.usage_in_bytes": "70000640\n",
    f"sys/fs/cgroup/memory/{STEP_1}/memory.stat": "cache 17\nrss 0\ntotal_cache 100\ntotal_rss 52428800\n",
}


def accounts(second: int) -> dict[str, str]:
    """Return files of cpu, cpuacct and blkio after some seconds of work."""
    cpu, blkio = f"sys/fs/cgroup/cpu,cpuacct/{STEP_1}", f"sys/fs/cgroup/blkio/{STEP_1}"
    rows = f"8:0 Read {second * 4096}\n8:0 Write 7\n8:16 Read {second * 96}\n8:0 Total 9\nTotal 99\n"
    return {
        f"{cpu}/cpuacct.usage": f"{second * 1_500_000_000}\n",
        f"{cpu}/cpu.stat": f"nr_periods 3\nnr_throttled 1\nthrottled_time {second * 250_000_000}\n",
        f"{blkio}/blkio.throttle.io_service_bytes": "8:0 Read 0\nTotal 0\n",
        f"{blkio}/blkio.throttle.io_service_bytes_recursive": rows,
        f"{blkio}/task_0/blkio.throttle.io_service_bytes": rows,
    }


def test_the_step_by_control_groups_of_version_1(tmp_path: Path) -> None:
    """What they do not tell is missing: pressure, and what is written by way of the page cache."""
    (tmp_path / V1["freezer"][1:]).mkdir(parents=True)
    host = measured(tmp_path, V1, MEMORY_1 | accounts(4), accounts(6))
    got = host.got  # type: ignore[attr-defined]
    assert host.source == "the step, by control groups of version 1"
    wanted = {"cpu": 1.5, "cpu_throttled": 0.25, "memory": 70000640, "memory_anon": 52428800, "read": 4192}
    assert {name: got[name] for name in wanted} == pytest.approx(wanted)
    assert all(math.isnan(got[name]) for name in ("write", "cpu_pressure", "memory_pressure", "io_pressure"))
    assert {name for name, _ in host.blanks} == {"io", "pressure"}
    # Before Linux 5.0 or so there is no sum of the groups below.
    (tmp_path / f"sys/fs/cgroup/blkio/{STEP_1}/blkio.throttle.io_service_bytes_recursive").unlink()
    old = HostCollector()
    old.open(Target(groups=tuple(V1.items()), root=str(tmp_path)))
    old.read(10**9)
    (reading,) = old.read(2 * 10**9)
    assert reading.values[old.quantities.index("read")] == 0


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    """Version 2 without controllers tells time and pressure; memory is version 1's; quotas nobody's."""
    two = f"sys/fs/cgroup/unified/{STEP_1}"

    def at(second: int) -> dict[str, str]:
        pressure = {
            f"{two}/{name}.pressure": f"some avg10=0 total={second * 100_000}\n" for name in ("cpu", "io", "memory")
        }
        return {f"{two}/cpu.stat": f"usage_usec {second * 700_000}\nuser_usec 1\n", **pressure}

    host = measured(tmp_path, {"": f"/{two}", "memory": V1["memory"]}, MEMORY_1 | at(1), at(3))
    got = host.got  # type: ignore[attr-defined]
    assert host.source == "the step, by control groups of version 1 and 2"
    wanted = {"cpu": 0.7, "memory": 70000640, "memory_anon": 52428800, "cpu_pressure": 0.1, "io_pressure": 0.1}
    assert {name: got[name] for name in wanted} == pytest.approx(wanted)
    assert all(math.isnan(got[name]) for name in ("cpu_throttled", "read", "write"))


def stat(pid: int, parent: int, own: int, children: int, start: int = 5) -> dict[str, str]:
    """Return a process's stat; times in seconds. Its name is a nasty one."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = f"{own * ticks} 0 {children * ticks} 0 20 0 1 0 {start} 0"
    return {f"proc/{pid}/stat": f"{pid} (a) R 1 ) R {parent} 1 1 0 -1 0 0 0 0 0 {fields}\n"}


def test_processor_time_by_processes(tmp_path: Path) -> None:
    """Of a step without cpuacct: a child that ended is in its parent's sum and counts once, a new one wholly."""
    group = f"sys/fs/cgroup/freezer/{STEP_1}"
    first = {f"{group}/cgroup.procs": "10\n", f"{group}/task_0/cgroup.procs": "11\n12\n"}
    first |= stat(10, 1, 100, 50) | stat(11, 10, 30, 0) | stat(12, 11, 7, 0)
    # 12 ended after another second and was waited for by 11, which ended after another 2, waited for by 10; 13 is new.
    then = {f"{group}/task_0/cgroup.procs": "13\n"} | stat(10, 1, 101, 50 + 32 + 8) | stat(13, 10, 2, 0, 99)
    host = measured(tmp_path, {"freezer": V1["freezer"], "cpuset": V1["freezer"]}, first, then)
    got = host.got  # type: ignore[attr-defined]
    assert got["cpu"] == pytest.approx((1 + 1 + 2 + 2) / 2) and math.isnan(got["memory"])
    assert host.source == "the step, by control groups of version 1, and its processes' processor time"
    # A number that is another process's now.
    tree(tmp_path, stat(13, 10, 1, 0, 120))
    (reading,) = host.read(4 * 10**9)
    assert reading.values[0] == pytest.approx(1)


def test_processes_that_proc_hides_are_missing(tmp_path: Path) -> None:
    """With hidepid there would be a sum of none, which is not zero; a process that has ended is no hidden one."""
    group = f"sys/fs/cgroup/freezer/{STEP_1}"
    host = measured(tmp_path, {"freezer": V1["freezer"]}, {f"{group}/cgroup.procs": "10\n11\n"}, stat(10, 1, 1, 1))
    assert math.isnan(host.got["cpu"])  # type: ignore[attr-defined]
    assert any(name == "cpu" and "hidepid" in reason for name, reason in host.blanks)


def test_the_host_alone_is_a_report(libraries: Path, tmp_path: Path) -> None:
    """A node without GPUs."""
    data = tmp_path / "data"
    words = [sys.executable, "-m", "piolet.cli.main", "score", "run", "--collector", "host", "--out", str(data)]
    path = tmp_path / "script"
    path.write_text("")
    environment = simulation.environment(libraries, path)
    code = "import time; end = time.monotonic() + 2.6\nwhile time.monotonic() < end: pass"
    done = subprocess.run(
        [*words, "--", sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "No GPUs: the host's figures only." in done.stderr and "cores per node" in done.stderr
    report = [sys.executable, "-m", "piolet.cli.main", "score", "report", str(data), "--pdf"]
    done = subprocess.run(report, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "The host" in (data / "report.html").read_text() and (data / "report.pdf").exists()
    assert not list(data.glob(f"*{journal.SUFFIX}"))
