"""Attacks by what runs: outside of the job's limits, after its end, in the way of others; and on programs of ours."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack, by_kernel
from tests.attacks.test_mounts import image_of, own_image
from tests.cluster import leftovers
from tests.cluster.faults import Faults, end, kill
from tests.cluster.support import Cluster, busybox_layer
from tests.support.waiting import wait_until

# Not the freezer, in which Slurm puts tasks alone: what is no task is ended by us.
CONTROLLERS = ("cpuset", "devices", "memory")
Compiled = Callable[[str], Path]


def groups_of(pid: int) -> dict[str, str]:
    """Return the control groups of a process by controller, the task's own level left away."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name or "unified"] = re.sub(r"/task_[^/]*$", "", path)
    return found


def sleepers(faults: Faults, mark: str) -> list[int]:
    """Return the processes of a cluster that are `sleep MARK`, those that speak of it not."""
    return [pid for pid in faults.members() if leftovers.command_of(pid) == f"sleep {mark}"]


@pytest.mark.kernels
@attack("squashfuse stays in pioletd's control group")
def test_squashfuse_is_outside_of_the_jobs_limits(confined: Faults) -> None:
    """Row 4. Promise: what mounts a user's own image is in the step: its memory, its devices, its processors, its end.
    A user who attaches to it with ptrace gains nothing by that."""
    cluster = confined.cluster
    with own_image(cluster, confined) as pids:
        assert pids
        (task,) = confined.tasks("sleep 600")
        step = {name: path for name, path in groups_of(task).items() if name in CONTROLLERS}
        assert all("/step_" in path for path in step.values()), step
        outside = []
        for pid in pids:
            own = groups_of(pid)
            outside += [f"{name}: {own[name]}, not {path}" for name, path in step.items() if own[name] != path]
    if outside:
        raise Broken(f"squashfuse is not in the step: {'; '.join(outside)}")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10, "the end of squashfuse")


@attack("a container is killed once")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_the_user_ends_what_ends_their_container(plain: Faults, compiled: Compiled, number: int) -> None:
    """Row 5. Promise: nothing outlives its step in a container, although the user may signal whatever joins their user
    namespace to end it. The survivor leaves its session, so that Slurm has lost it."""
    cluster = plain.cluster
    mark = f"87{os.getpid() % 1000}{int(number):02d}"
    script = f"setsid sleep {mark} <&- >&- 2>&- & echo up; read line"
    survived = []
    for _ in range(3):
        srun = cluster.start("alice", "srun", f"--environment={plain.edf}", "sh", "-c", script)
        assert srun.stdout is not None
        assert srun.stdout.readline() == "up\n"
        wait_until(lambda: len(sleepers(plain, mark)) == 1, what="the survivor")
        (pid,) = sleepers(plain, mark)
        words = plain.on_node("node1", str(compiled("hunter")), str(int(number)), "1", user="alice")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as hunter:
            assert hunter.stdout is not None
            assert hunter.stdout.readline() == "hunting\n"
            assert srun.stdin is not None
            srun.stdin.write("go\n")
            srun.stdin.flush()
            hunter.communicate()
        end(srun)
        with contextlib.suppress(AssertionError):
            wait_until(lambda p=pid: not Path(f"/proc/{p}").exists(), 5)  # type: ignore[misc]
            continue
        survived.append(pid)
        kill(pid)
        break
    if survived:
        raise Broken("a process outlived its step, since what was to end it was ended by its user")


@attack("no worker slots for each user")
def test_workers_that_their_user_holds_up_take_all_slots(cluster: Cluster, faults: Faults) -> None:
    """Row 7. Promise: a node builds containers for one user whatever another's workers do. Alice's hang in a file
    system that does not answer; that she stops them with SIGSTOP is the same to the monitor."""
    count = 24  # more than a user's slots; the weakened build has fewer slots in all, and none of them for each user
    place = cluster.room("alice") / "hung"
    (place / "x").mkdir(parents=True)
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["{place}/x:/x"]\n')
    option = f"--environment={edf}"
    launch = (
        f"for i in $(seq {count}); do srun --overlap --overcommit -n1 --mem=0 {option} true 2>/dev/null & done; wait"
    )
    uid = str(uid_of("alice"))

    def held() -> list[int]:
        return [pid for pid in faults.workers("node1") if leftovers.status(pid, "Uid").split()[:1] == [uid]]

    with faults.hung("node1", place):
        faults.srun("bob", "-w", "node1", "true").good()
        salloc = cluster.start("alice", "salloc", "-w", "node1", "-n1", "sh", "-c", launch)
        try:
            wait_until(lambda: len(held()) >= 12, 15, "workers that are held up")
            began = time.monotonic()
            faults.srun("bob", "-w", "node1", "true", timeout=60).good()
            took = time.monotonic() - began
        finally:
            faults.cancel_all()
            end(salloc, 40)
    if took > 5:
        raise Broken(f"bob's step took {took:.1f} s while alice's workers are held up")


FORKER = """\
import os
import time
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Forker(Eval):
    name = "forker"
    mark: str = parameter("", text="")

    def check(self, context: Context) -> Verdict:
        for _ in range(2):
            if os.fork():
                if _ == 0:
                    time.sleep(0.3)
                    return Verdict("pass")
                os._exit(0)
            os.setsid()
        for number in range(3):
            os.close(number)
        os.execv("/bin/sleep", ["sleep", self.mark])
"""


@pytest.fixture
def forker(plain: Faults) -> Iterator[tuple[Path, str]]:
    mark = f"86{os.getpid() % 1000}"
    room = plain.cluster.room("alice")
    plain.cluster.write("alice", room / "forker.py", FORKER)
    text = f"name: p\nevals:\n- {{name: forker, type: forker.Forker, mark: '{mark}'}}\n"
    plain.cluster.write("alice", room / "p.yaml", text)
    yield room, mark
    for pid in sleepers(plain, mark):
        kill(pid)


@attack("an eval's orphans are not looked for")
def test_an_eval_leaves_its_session_twice(plain: Faults, forker: tuple[Path, str]) -> None:
    """Row 12. Promise: what a vetting has started ends with it, also where Slurm follows processes by their session."""
    room, mark = forker
    done = plain.cluster.run("alice", "srun", "-N1", "--vet=p.yaml,retries=0", "true", cwd=room)
    done.good()
    wait_until(lambda: not plain.cluster.jobs(), 10, "the end of the job")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not sleepers(plain, mark), 3)
        return
    raise Broken("a process of an eval outlived the job")


def writable(pid: int) -> list[str]:
    return [path for path in (f"/proc/{pid}/exe",) if os.access(path, os.W_OK)]


OVERWRITE = """
for f in /run/piolet/entry /proc/[0-9]*/exe /proc/self/exe; do
  case $(readlink $f) in */busybox|*deleted*) continue;; esac
  (echo x >> $f) 2>/dev/null && echo "wrote $f: $(readlink $f)"
done
true
"""


@by_kernel("programs of ours belong to root, and root of a user namespace is nobody outside")
@pytest.mark.parametrize("entrypoint", [["/proc/self/exe"], ["/bin/sh", "-c", OVERWRITE, "sh"], ["/run/piolet/entry"]])
def test_a_program_of_ours_is_overwritten_from_inside(cluster: Cluster, faults: Faults, entrypoint: list[str]) -> None:
    """Class of CVE-2019-5736 (the runtime's program overwritten through /proc/self/exe). Promise: no program of the
    host that runs for a container can be written from inside of it: entry program, worker, squashfuse."""
    ours = [cluster.layout.entry_program, cluster.layout.vet_program, Path(faults.daemon("pioletd-node1").name)]
    before = {path: path.stat().st_mtime_ns for path in ours if path.exists()}
    image = cluster.push("overwrite", [busybox_layer()], Env=["PATH=/bin"], Entrypoint=entrypoint)
    edf = cluster.edf("alice", f'image = "{image}"\nentrypoint = true\n')
    done = cluster.srun("alice", edf, "sh", "-c", OVERWRITE, timeout=30)
    after = {path: path.stat().st_mtime_ns for path in before}
    if "wrote" in done.out or before != after:
        raise Broken(f"a program of the host was written from inside: {done.out[:300]}")


def listed(text: str) -> list[str]:
    """Return what `ls -l` of /proc/PID/fd shows beyond the standard streams and the listing itself."""
    links = dict(re.findall(r"(\d+) -> (.*)$", text, re.MULTILINE))
    return [f"{n} -> {to}" for n, to in links.items() if int(n) > 2 and not re.search(r"/fd$|^/proc/\d+/fd$", to)]


@by_kernel("descriptors are opened close-on-exec")
@pytest.mark.parametrize("how", ["task", "entrypoint"])
def test_descriptors_of_ours_in_a_task(cluster: Cluster, faults: Faults, how: str) -> None:
    """Class of CVE-2024-21626 (leaked descriptors). Promise: a task has no descriptor of ours, not of the host's
    directories, nor of a namespace, nor of a socket of pioletd."""
    words = ["sh", "-c", "ls -l /proc/self/fd"]
    image = image_of(faults)
    if how == "entrypoint":
        script = 'ls -l /proc/self/fd; exec "$@"'
        image = cluster.push("lister", [busybox_layer()], Env=["PATH=/bin"], Entrypoint=["/bin/sh", "-c", script, "sh"])
    edf = cluster.edf("alice", f'image = "{image}"\n' + ("entrypoint = true\n" if how == "entrypoint" else ""))
    bare = set(listed(cluster.srun("alice", None, *words).good()))
    inside = cluster.srun("alice", edf, *words).good()
    assert "0 -> " in inside and (how == "task" or inside.count("0 -> ") == 2), inside
    # Slurm's own, if it has any, are in both.
    kinds = {re.sub(r"\d+", "", one) for one in bare}
    leaked = [one for one in listed(inside) if re.sub(r"\d+", "", one) not in kinds]
    if leaked:
        raise Broken(f"a {how} has descriptors of others: {leaked}")


@attack("squashfuse keeps what it inherits")
def test_descriptors_of_ours_in_squashfuse(cluster: Cluster, faults: Faults) -> None:
    """Class of CVE-2024-21626. Promise: squashfuse, which is the user's to trace, has its image, its file system and
    nothing else."""
    with own_image(cluster, faults) as pids:
        found = {pid: os.listdir(f"/proc/{pid}/fd") for pid in pids}
        links = {pid: [os.readlink(f"/proc/{pid}/fd/{n}") for n in numbers] for pid, numbers in found.items()}
    alien = [
        to
        for tos in links.values()
        for to in tos
        if not to.startswith(("/dev/null", "/dev/fuse")) and "own.sqsh" not in to
    ]
    if alien:
        raise Broken(f"squashfuse has descriptors of others: {alien}")


LISTER = """\
import os
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict


@dataclass(frozen=True)
class Lister(Eval):
    name = "lister"

    def check(self, context: Context) -> Verdict:
        links = []
        for n in os.listdir("/proc/self/fd"):
            try:
                links.append(n + " -> " + os.readlink("/proc/self/fd/" + n))
            except OSError:
                continue
        alien = [one for one in links if "pipe:" not in one and "/dev/null" not in one]
        number = len(links)
        if alien or number > 5:
            return Verdict("fail", "; ".join(links))
        return Verdict("pass")
"""


@pytest.mark.kernels
@attack("an eval keeps what it inherits")
def test_descriptors_of_ours_in_an_eval(cluster: Cluster) -> None:
    """Class of CVE-2024-21626. Promise: an eval has its two pipes and its standard streams, and no descriptor of root's
    process or of the vet step's connection."""
    room = cluster.room("alice")
    cluster.write("alice", room / "lister.py", LISTER)
    cluster.write("alice", room / "p.yaml", "name: p\nevals:\n- {name: lister, type: lister.Lister}\n")
    done = cluster.run("alice", "srun", "-N1", "--vet=p.yaml,retries=0", "true", cwd=room)
    if done.status != 0 and "->" in done.both:
        raise Broken(f"an eval has descriptors of others: {done.err[:500]}")
    done.good()


@by_kernel("a process that changes its user is not dumpable")
def test_a_worker_is_traced_by_its_user(cluster: Cluster, faults: Faults) -> None:
    """Row 13. Promise: a worker that has become the user answers the monitor; its user cannot make it say what it does
    not mean, by ptrace or /proc/PID/mem. Seen by whom its files in /proc belong to, as the kernel has it."""
    place = cluster.room("alice") / "hung"
    (place / "x").mkdir(parents=True)
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["{place}/x:/x"]\n')
    with faults.hung("node1", place):
        waiting = cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", "true")
        uid = str(uid_of("alice"))

        def mine() -> list[int]:
            return [pid for pid in faults.workers("node1") if leftovers.status(pid, "Uid").split()[:1] == [uid]]

        wait_until(mine, 20, "the worker")
        owners = [os.stat(f"/proc/{pid}/mem").st_uid for pid in mine()]
        faults.cancel_all()
        end(waiting)
    assert owners
    if any(owner != 0 for owner in owners):
        raise Broken("a worker can be traced by its user")


def uid_of(user: str) -> int:
    return int(subprocess.run(["id", "-u", user], capture_output=True, text=True, check=True).stdout)


@by_kernel("no process leaves its control group upwards")
def test_a_task_leaves_its_control_group(confined: Faults) -> None:
    """Row 12. Promise: with proctrack/cgroup, what leaves its session in a container is ended with its step."""
    cluster, mark = confined.cluster, f"85{os.getpid() % 1000}"
    script = f"setsid setsid sleep {mark} <&- >&- 2>&- & sleep 0.2"
    confined.srun("alice", "sh", "-c", script).good()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not sleepers(confined, mark), 5)
        return
    for pid in sleepers(confined, mark):
        kill(pid)
    raise Broken(f"a process outlived its step in {cluster.directory}")
