"""`make demo-central`: a GPU falls off the bus, and a central service says which node it was, to whom, and since when.

Three users' steps run on a private cluster with Slurm's accounting and a central service. One node loses a GPU (a line
in a log that stands for the kernel's), and steps fail there. Another user's program is broken, and no node is blamed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tools.cluster import lifecycle, services
from tools.cluster.errors import ClusterError
from tools.cluster.layout import Layout, node_names
from tools.cluster.state import load
from tools.demonstration import on_a_cluster

NODES = 4
SICK = "node3"
GPU = "0000:3b:00"
FELL_OFF = f"NVRM: Xid (PCI:{GPU}): 79, pid=4242, name=python3, GPU has fallen off the bus."
WITHIN_S = 20.0


class Demo:
    """What the demo does on a cluster."""

    def __init__(self, layout: Layout, log: int) -> None:
        self._layout = layout
        self._log = log  # of the sick node's kernel
        self._entry = 0

    def run(self) -> None:
        """Raises ClusterError: something is not as it should be."""
        self._good("alice", "srun", f"-N{NODES}", "true")
        print(f"\n{SICK} loses a GPU: its kernel says so (simulated: a line in a log that stands for the kernel's).")
        self._kernel_says(FELL_OFF)
        broken = f'test "$(hostname)" != {SICK} || {{ echo "CUDA error: no device" >&2; exit 1; }}'
        self._fails("alice", "srun", f"-N{NODES}", "sh", "-c", broken)
        said = self._until_told("bob", "srun", f"--nodelist={SICK}", "sh", "-c", broken)
        _expect(f"--exclude={SICK}" in said, "the line at srun's end names the node", said)
        print("\nA program of carol's is broken, and fails wherever it runs.")
        said = ""
        for node in node_names(NODES):
            if node != SICK:
                said = self._fails("carol", "srun", f"--nodelist={node}", "sh", "-c", "exit 7")
        _expect("probably the program" in said, "carol is told that it is the program", said)
        print("\nWhat the service says of it, to everybody, and to the site's staff:")
        said = self._good("alice", "piolet", "node", SICK)
        _expect("gpu" in said, "piolet node tells of the GPU", said)
        said = self._staff("central", "offenders")
        others = [node for node in node_names(NODES) if node != SICK and node in said]
        _expect(SICK in said and not others, f"{SICK} is the only offender", said)
        said = self._staff("central", "explain", said.split()[0])
        _expect("gpu.lost" in said, "the case has its records", said)
        # What was concluded is what rules conclude of the store again.
        said = self._staff("central", "replay", "--since", "1h")
        _expect("gpu-lost" in said, "the replay says which rule, and since when", said)

    def _kernel_says(self, text: str) -> None:
        self._entry += 1
        stamp = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6)
        os.write(self._log, f"4,{self._entry},{stamp},-;{text}\n".encode("ascii"))
        _wait(lambda: "gpu.lost" in self._ask("central", "node", SICK), "the service heard of the GPU")

    def _until_told(self, user: str, *command: str) -> str:
        """Run a step that fails until a line about it comes; return what was said."""
        deadline = time.monotonic() + WITHIN_S
        while "piolet: " not in (said := self._fails(user, *command)):
            if time.monotonic() > deadline:
                raise ClusterError(f"no line came at the end of srun within {WITHIN_S:.0f} s")
        return said

    def _good(self, user: str, *command: str) -> str:
        done = self._run(user, *command)
        if done.returncode:
            raise ClusterError(f"`{' '.join(command)}` failed for {user}: {done.stdout}")
        return done.stdout

    def _fails(self, user: str, *command: str) -> str:
        done = self._run(user, *command)
        if not done.returncode:
            raise ClusterError(f"`{' '.join(command)}` of {user} did not fail: {done.stdout}")
        return done.stdout

    def _run(self, user: str, *command: str) -> subprocess.CompletedProcess[str]:
        words = " ".join(f"'{word}'" if " " in word else word for word in command)
        return _shown([str(self._layout.as_script), user, *command], f"{user}$ {words}")

    def _staff(self, *words: str) -> str:
        return _shown([self._piolet, *words], f"root# piolet {' '.join(words)}", self._environment).stdout

    def _ask(self, *words: str) -> str:
        return subprocess.run(
            [self._piolet, *words], capture_output=True, text=True, check=False, timeout=60, env=self._environment
        ).stdout

    @property
    def _piolet(self) -> str:
        return str(self._layout.bin / "piolet")

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self._layout.slurm_conf)}


def _shown(
    command: list[str], prompt: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    print(f"  {prompt}", flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120,
        stdin=subprocess.DEVNULL, cwd="/", env=environment,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        print(f"    {line}", flush=True)
    return done


def _expect(right: bool, what: str, said: str) -> None:
    if not right:
        raise ClusterError(f"it is not so that {what}: {said.strip() or 'nothing was said'}")


def _wait(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not happened():
        if time.monotonic() > deadline:
            raise ClusterError(f"{WITHIN_S:.0f} s went by before {what}")
        time.sleep(0.2)


@contextlib.contextmanager
def kernel_log(layout: Layout) -> Iterator[int]:
    """Give the sick node a log that stands for the kernel's, which nobody can write to as the kernel; yield its end."""
    state = load(layout.state_file)
    slurmd = state.find(f"slurmd-{SICK}") if state else None
    if slurmd is None:
        raise ClusterError(f"{SICK} is not running")
    path = layout.run / "kmsg"
    os.mkfifo(path, 0o600)
    lifecycle.stop_pioletd(layout, SICK, signal.SIGTERM)
    enter = ["nsenter", f"--target={slurmd.pid}", "--mount", "--"]
    subprocess.run([*enter, "mount", "--bind", str(path), "/dev/kmsg"], check=True, capture_output=True, timeout=30)
    # How far the real one was read is nothing to this one.
    (services.socket_in_node(slurmd).parent / "kmsg").unlink(missing_ok=True)
    log = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # open as long as it is read: it never ends
    try:
        lifecycle.restart_pioletd(layout, SICK)
        yield log
    finally:
        os.close(log)


def play(layout: Layout) -> None:
    """Break a node of the cluster, and see what its users and its staff are told. Raises ClusterError."""
    with kernel_log(layout) as log:
        Demo(layout, log).run()


def main() -> int:
    request = lifecycle.Request(NODES, piolet=True, accounting=True, central=True)
    return on_a_cluster("demo-central", request, play)


if __name__ == "__main__":
    sys.exit(main())
