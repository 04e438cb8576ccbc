"""What cluster tests work with: a running private cluster, its users, their files, small images.

Commands run as a user through the cluster's `as`, from the user's home, with a bound; output is text. Nothing here
asserts what a command has to do.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support import oci
from tests.support.waiting import PATIENCE, wait_until
from tools.cluster import cgroup, controllers, packages, registry
from tools.cluster.errors import ClusterError
from tools.cluster.layout import Layout, layout_for

ROOT = Path(__file__).resolve().parents[2]
BUSYBOX = Path("/bin/busybox")
TIMEOUT_S = 60.0
SCORE_HERE = "--score=out=piolet-score-%j.%s%r"
"""The samples in the working directory, where a test finds them."""


@dataclass(frozen=True)
class Result:
    """How a command ended. `status` is negative when a signal ended it."""

    status: int
    out: str
    err: str

    def good(self) -> str:
        """Return the output of a command that must have worked."""
        assert self.status == 0, f"status {self.status}\nout: {self.out}\nerr: {self.err}"
        return self.out

    @property
    def both(self) -> str:
        return self.out + self.err

    @property
    def said(self) -> str:
        """The errors without what srun says where it waits until the job before it has left its nodes."""
        waited = r"^srun: job \d+ (queued and waiting for|has been allocated) resources\n"
        return re.sub(waited, "", self.err, flags=re.MULTILINE)


class Cluster:
    """The cluster in `directory`, which runs."""

    def __init__(self, directory: Path) -> None:
        self.layout: Layout = layout_for(directory)
        self.directory = self.layout.root
        text = self.layout.env_sh.read_text("utf-8")
        exported = dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", text, re.MULTILINE))
        self.registry = exported["REGISTRY"]
        self.demo_image = exported["DEMO_IMAGE"]
        self._lock = threading.Lock()
        self._rooms: list[Path] = []

    # -- commands

    def run(
        self,
        user: str,
        *command: str | Path,
        timeout: float = TIMEOUT_S,
        stdin: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command as a user. Raises subprocess.TimeoutExpired, command ended after `timeout` s times PATIENCE."""
        process = self.start(user, *command, cwd=cwd, env=env)
        try:
            out, err = process.communicate(stdin or "", timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            # srun cancels its step on SIGTERM; SIGKILL would leave it running.
            process.terminate()
            try:
                process.communicate(timeout=10)
            finally:
                process.kill()
            raise
        return Result(process.returncode, out, err)

    def start(
        self,
        user: str,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start a command as a user; it has pipes unless `more` says otherwise."""
        settings = [f"{name}={value}" for name, value in (env or {}).items()]
        # A shell that started the tests in the background has them ignore SIGINT, and so would the command.
        words = ["env", "--default-signal=INT,QUIT", *settings, *map(str, command)]
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [str(self.layout.as_script), user, *words],
            text=True,
            errors="surrogateescape",
            cwd=cwd or pwd.getpwnam(user).pw_dir,
            **{**streams, **more},
        )

    def srun(self, user: str, edf: str | Path | None, *command: str | Path, **more: Any) -> Result:
        """Run `srun` with `--environment=EDF`, or without when `edf` is None."""
        option = [] if edf is None else [f"--environment={edf}"]
        return self.run(user, "srun", *option, *command, **more)

    def pair(self, user: str, edf: Path, *command: str | Path, **more: Any) -> tuple[Result, Result]:
        """Run the same `srun` without and with an environment, at once; return both."""
        with ThreadPoolExecutor(2) as pool:
            bare, inside = pool.map(lambda which: self.srun(user, which, *command, **more), (None, edf))
        return bare, inside

    def sbatch(self, user: str, script: str, *options: str, cwd: Path | None = None, timeout: float = 60) -> str:
        """Submit a script, wait for the job's end, and return what it wrote, standard error included."""
        room = cwd or self.room(user)
        path = self.script(user, script)
        words = ["sbatch", "--parsable", "--output=job.out", *options, str(path)]
        # Not sbatch --wait: it looks seldom.
        self.wait_end(self.run(user, *words, cwd=room).good().strip(), timeout)
        output = room / "job.out"
        return output.read_text("utf-8", "replace") if output.exists() else ""

    def remove_image(self, reference: str, user: str = "alice") -> None:
        """Remove an image that `user` has from the store, as root: no user may remove a public one."""
        listed = self.run(user, "piolet", "image", "list").good()
        row = next(line for line in listed.splitlines() if line.startswith(f"{reference} "))
        piolet: list[str | Path] = [self.layout.venv_bin / "piolet", "--config", self.layout.piolet_toml]
        subprocess.run([*piolet, "image", "rm", row.split()[1]], check=True, stdout=subprocess.DEVNULL, cwd="/")

    def tool(self, *arguments: str) -> None:
        """Call tools.cluster, quietly unless it fails."""
        call_tool(*arguments, "--dir", str(self.directory))

    def jobs(self) -> str:
        """Return the jobs that are queued or running, a line each."""
        return self.run("alice", "squeue", "-h", "-r", "-o", "%F %t %j").good()

    def wait_end(self, job: str, limit_s: float = 30.0) -> None:
        """Wait until a job, or each task of an array, is no longer queued, running or completing."""
        wait_until(lambda: job not in re.findall(r"^\d+", self.jobs(), re.MULTILINE), limit_s, f"the end of job {job}")

    def requeue(self, job: str) -> None:
        """Requeue a job that runs, and have its next run begin at once."""
        root = {"SLURM_CONF": str(self.layout.slurm_conf), "PATH": "/usr/bin:/bin"}
        subprocess.run(["scontrol", "requeue", job], env=root, check=True)
        wait_until(lambda: f"{job} PD" in self.jobs(), what="the requeue")
        # Slurm would wait two minutes; credentials of the second that the first run ended in are refused, though.
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"], env=root, check=True)

    # -- files

    def room(self, user: str) -> Path:
        """Return a fresh directory of a user, 0755, in a place that every node and user can reach."""
        self.rooms.chmod(0o755)
        path = Path(tempfile.mkdtemp(prefix=f"{user}-", dir=self.rooms))
        path.chmod(0o755)
        self.give(user, path)
        return path

    @cached_property
    def rooms(self) -> Path:
        path = self.directory / "rooms"
        path.mkdir(exist_ok=True)
        return path

    def give(self, user: str, *paths: Path) -> None:
        """Make files a user's own."""
        entry = pwd.getpwnam(user)
        for path in paths:
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def edf(self, user: str, text: str, room: Path | None = None, name: str = "environment.toml") -> Path:
        """Write a definition file into a directory of the user, a fresh one unless given."""
        return self.write(user, (room or self.room(user)) / name, text)

    def script(self, user: str, text: str) -> Path:
        """Write a program: `text` begins with its `#!` line, or is of /bin/bash."""
        if not text.startswith("#!"):
            text = f"#!/bin/bash\n{text}"
        return self.write(user, self.room(user) / "script.sh", text, 0o755)

    def write(self, user: str, path: Path, text: str, mode: int = 0o644) -> Path:
        path.write_text(text, "utf-8")
        path.chmod(mode)
        self.give(user, path)
        return path

    # -- images

    def push(self, name: str, layers: Sequence[Sequence[oci.Entry]], **settings: Any) -> str:
        """Make an image and push it to the cluster's registry; return its reference. `settings` as in its config."""
        with tempfile.TemporaryDirectory(prefix="piolet-image-") as folder:
            digest = oci.build(Path(folder) / "image", layers, settings=settings)
            # A tag is looked up once and then known: what changes gets another.
            reference = f"{self.registry}/test/{name}:{digest[7:19]}"
            registry.copy(f"dir:{folder}/image", reference, timeout_s=registry.PUSH_TIMEOUT_S * PATIENCE)
        return reference

    def remove_rooms(self) -> None:
        shutil.rmtree(self.rooms, ignore_errors=True)


def busybox_layer(*more: oci.Entry, etc: bool = True) -> list[oci.Entry]:
    """Return a layer with a static busybox, its usual names in /bin, and a marker that tells image from host."""
    entries = [oci.folder("bin"), oci.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)]
    listed = subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split()
    entries += [oci.symlink(f"bin/{name}", "busybox") for name in listed if name != "busybox"]
    entries += [oci.file("marker", b"in the image\n")]
    if etc:
        entries += [
            oci.folder("etc"),
            oci.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            oci.file("etc/group", b"root:x:0:\n"),
        ]
    return [*entries, *more]


@contextlib.contextmanager
def running(name: str, *options: str) -> Iterator[Cluster]:
    """Start a cluster in build/NAME with these options of `tools.cluster up`; end it afterwards, whatever happens."""
    where = ("--dir", str(ROOT / "build" / name))
    call_tool("down", *where)
    call_tool("up", *options, *where)
    try:
        made = Cluster(Path(where[1]))
        yield made
        made.remove_rooms()
    finally:
        call_tool("down", *where)


def lacking(*programs: str) -> str:
    """Return why no cluster can be started here, and used with these programs; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to start a Slurm cluster of its own"
    absent = packages.missing() + [name for name in programs if shutil.which(name) is None]
    absent += [] if BUSYBOX.exists() else ["busybox (busybox-static)"]
    return f"not installed: {', '.join(absent)}" if absent else ""


def no_controllers() -> str:
    """Return why steps have no control groups of their own on this machine; empty if they can have them."""
    try:
        controllers.find(cgroup.MOUNTINFO.read_text("utf-8"))
    except ClusterError as error:
        return str(error)
    return ""


def call_tool(*arguments: str) -> None:
    """Call tools.cluster, quietly unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.cluster", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
