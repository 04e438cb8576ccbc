"""A job's own mount namespace: where it is looked for, and which is refused."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.base.errors import PioletError
from piolet.steps import jobnamespaces

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
# A slurmd's mounts with namespaces kept in files, and processes that stay: $0 is a directory.
STEPD = """
set -e
for job in "$@"; do
    mkdir -p "$0/$job"; : >"$0/$job/.ns"
    unshare ${USERS:+--user --map-root-user} --mount --propagation private sleep 60 <&- >&- &
    while [ "$(readlink /proc/$!/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ]; do :; done
    readlink /proc/$!/ns/mnt
    # On a loaded machine the first one may be refused.
    for try in 1 2 3 4 5 6 7 8 9; do
        if mount --bind /proc/$!/ns/mnt "$0/$job/.ns" 2>/dev/null; then break; fi
        sleep 0.1
    done
done
echo ready
read x
kill $(jobs -p)
"""
Stepd = Callable[..., tuple[int, list[int]]]


@pytest.fixture
def stepd(tmp_path: Path) -> Iterator[Stepd]:
    """Start a process that stands for a slurmstepd; return its number, and the namespaces kept for each job."""
    running = []

    def start(*jobs: str, user: int = 0, users: bool = False) -> tuple[int, list[int]]:
        # Its mounts are its own, private ones: a namespace cannot be kept below itself.
        # On one processor: Linux 6.18 else refuses to keep some of them (tools/cluster/nodeinit.py says why).
        words = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
        words += ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
        inner = f'mount -t tmpfs own "{tmp_path}"; mount --make-private "{tmp_path}"; '
        if user:
            inner += f'exec setpriv --reuid={user} --clear-groups sh -c "echo ready; read x"'
        process = subprocess.Popen(
            [*words, inner + STEPD, str(tmp_path), *jobs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **({"USERS": "1"} if users else {})},
        )
        running.append(process)
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline().strip()) not in ("ready", ""):
            lines.append(int(line[len("mnt:[") : -1]))
        return process.pid, lines

    yield start
    for process in running:
        process.communicate("x\n", timeout=10)


def test_where_it_is_looked_for() -> None:
    """Below any BasePath, in the two places that Slurm's plugins have; for that job only, and namespaces only."""
    text = (
        "105 83 0:4 mnt:[4026532203] /run/slurm\\040private/node1/7/.ns rw - nsfs nsfs rw\n"
        "106 83 0:4 mnt:[4026532204] /run/slurm/17/.ns rw - nsfs nsfs rw\n"
        "107 83 0:4 mnt:[4026532205] /run/slurm/8/.ns/mnt rw - nsfs nsfs rw\n"
        "108 83 0:4 user:[4026532206] /run/slurm/8/.ns/user rw - nsfs nsfs rw\n"
        "109 83 0:50 mnt:[4026532207] /run/slurm/9/.ns rw - fuse.x nsfs rw\n"
        "110 83 0:4 net:[4026532208] /run/netns/9/.ns rw - nsfs nsfs rw\n"
    )
    found = [jobnamespaces.candidates(text, job) for job in (7, 8, 9)]
    assert found == [{4026532203: "/run/slurm private/node1/7/.ns"}, {4026532205: "/run/slurm/8/.ns/mnt"}, {}]


@needs_root
def test_the_jobs_own_is_found(stepd: Stepd) -> None:
    """And that of no other job; a job without one has the node's mounts."""
    pid, numbers = stepd("7", "8")
    home = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    for job, number in zip((7, 8), numbers, strict=True):
        found = jobnamespaces.find(pid, job, jobnamespaces.Home(home))
        assert found is not None and os.fstat(found).st_ino == number
        os.close(found)
    assert jobnamespaces.find(pid, 9, jobnamespaces.Home(home)) is None
    assert jobnamespaces.find(2**22 - 1, 7, jobnamespaces.Home(home)) is None
    # Slurm 26.05: slurmstepd is there itself.
    found = jobnamespaces.find(pid, 9, jobnamespaces.Home(os.stat("/proc/self/ns/mnt").st_ino))
    assert found is not None and os.fstat(found).st_ino == home
    os.close(found)


@needs_root
def test_one_that_is_kept_later_is_seen(stepd: Stepd, tmp_path: Path) -> None:
    """Although the node's mounts are not read again for each step."""
    pid, _ = stepd()
    later, _ = stepd()
    home = jobnamespaces.Home(os.stat(f"/proc/{pid}/ns/mnt").st_ino)
    assert [jobnamespaces.find(pid, 5, home) for _ in range(2)] == [None, None]
    kept = tmp_path / "5" / ".ns"
    script = f"mkdir {kept.parent} && : >{kept} && mount --bind /proc/{later}/ns/mnt {kept}"
    subprocess.run(["nsenter", f"--target={pid}", "--mount", "sh", "-c", script], check=True)
    for _ in range(2):
        found = jobnamespaces.find(pid, 5, home)
        assert found is not None and os.fstat(found).st_ino == os.stat(f"/proc/{later}/ns/mnt").st_ino
        os.close(found)
    assert jobnamespaces.find(pid, 6, home) is None


@needs_root
def test_more_than_one_is_refused(stepd: Stepd) -> None:
    """Which is the job's cannot be told."""
    pid, _ = stepd("a/7", "b/7")
    with pytest.raises(PioletError, match="more than one mount namespace"):
        jobnamespaces.find(pid, 7, jobnamespaces.Home(0))


@needs_root
def test_one_of_another_user_namespace_is_refused(stepd: Stepd) -> None:
    """Its tasks could not join a container that was made from ours."""
    pid, _ = stepd("7", users=True)
    with pytest.raises(PioletError, match="user namespace of its own"):
        jobnamespaces.find(pid, 7, jobnamespaces.Home(0))


@needs_root
def test_mounts_of_a_process_that_is_not_roots_are_not_believed(
    stepd: Stepd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's process may have got the number of a slurmstepd that has ended, and have such a mount."""
    pid, _ = stepd("7", user=65534)
    monkeypatch.setattr(jobnamespaces, "candidates", lambda *_: {1: "/7/.ns"})
    with pytest.raises(PioletError, match="slurmstepd is gone"):
        jobnamespaces.find(pid, 7, jobnamespaces.Home(0))


@needs_root
@pytest.mark.parametrize("what", ["link", "fifo", "file", "other"])
def test_what_is_not_that_namespace_is_refused(tmp_path: Path, what: str) -> None:
    """Whatever lies there by now; a FIFO holds nothing up."""
    place = tmp_path / ".ns"
    if what == "link":
        place.symlink_to("/proc/self/ns/mnt")
    elif what == "fifo":
        os.mkfifo(place)
    else:
        place.touch()
    path = "/proc/self/ns/net" if what == "other" else str(place)
    with pytest.raises((PioletError, OSError)):
        jobnamespaces._open(path, os.stat("/proc/self/ns/mnt").st_ino)


@needs_root
@pytest.mark.parametrize(("mode", "status"), [(0o755, 0), (0o775, 3), (0o757, 3)])
def test_only_a_directory_of_root_is_built_in(mode: int, status: int) -> None:
    """Among a job's mounts a directory may be its user's. What is mounted is mounted in a copy."""
    with tempfile.TemporaryDirectory(dir="/run") as name:
        base = Path(name)
        base.chmod(mode)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
                copy = jobnamespaces.enter(before, f"{base}/build")
                other = os.fstat(copy).st_ino == os.stat("/proc/self/ns/mnt").st_ino != os.fstat(before).st_ino
                code = 0 if other and os.listdir(base) == ["build"] and os.path.ismount(base) else 4
            except PioletError as error:
                code = 3 if "is not root's there" in error.message else 5
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert not base.is_mount() and not list(base.iterdir())
