"""`make demo`: a cluster of its own, a training job in containers, a look at what came out, and all of it gone."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.cluster import lifecycle
from tools.cluster.errors import ClusterError, tail
from tools.cluster.image import MARKER, MARKER_TEXT
from tools.cluster.layout import REPOSITORY, Layout, node_names
from tools.cluster.state import load
from tools.demonstration import on_a_cluster

NODES = 4
TASKS_PER_NODE = 2
GPUS_PER_NODE = 2
USER = "alice"
EXAMPLE = REPOSITORY / "examples" / "demo"
DIRECTORY = f"/scratch/{USER}/piolet-demo"
SICK = "node2"
JOB_TIMEOUT_S = 180.0
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

RANK_LINE = re.compile(r"^rank (\d+) of (\d+) on (\S+) in \[(.*)\]$", re.MULTILINE)
REPORT_LINE = re.compile(r"^piolet: the report: (\S+)$", re.MULTILINE)
LOSS_LINE = re.compile(r"^epoch +\d+ +loss ([0-9.]+)", re.MULTILINE)


def problems(output: str, nodes: Sequence[str], tasks: int) -> list[str]:
    """Return what is wrong with the output of the job; empty when it is what the demo promises."""
    found: list[str] = []
    ranks = RANK_LINE.findall(output)
    if sorted(int(rank) for rank, _, _, _ in ranks) != list(range(tasks)):
        found.append(f"{len(ranks)} ranks said where they are, not {tasks}")
    if {node for _, _, node, _ in ranks} != set(nodes):
        found.append(f"the ranks ran on {sorted({node for _, _, node, _ in ranks})}, not on {list(nodes)}")
    bare = [rank for rank, _, _, image in ranks if not image.startswith(MARKER_TEXT)]
    if bare:
        found.append(f"ranks {', '.join(bare)} did not run in the demo image")
    losses = [float(text) for text in LOSS_LINE.findall(output)]
    if len(losses) < 2 or not losses[-1] < losses[0]:
        found.append(f"the loss did not go down: {losses}")
    return found


def packed(directory: Path) -> bytes:
    """Return the example as a tar file without owners."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return None if "__pycache__" in member.name else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, ".", filter=plain)
    return buffer.getvalue()


def as_user(layout: Layout, *argv: str, stdin: bytes = b"", check: bool = True) -> str:
    """Run a command as the demo's user; return what it printed."""
    result = subprocess.run(
        [str(layout.as_script), USER, *argv], input=stdin, capture_output=True, check=False, cwd="/", timeout=60
    )
    if check and result.returncode != 0:
        said = result.stderr.decode("utf-8", "replace").strip()
        raise ClusterError(f"`{' '.join(argv)}` failed for {USER}: {said or f'status {result.returncode}'}")
    return result.stdout.decode("utf-8", "replace")


def follow(layout: Layout, job: str, path: str) -> tuple[str, str]:
    """Show the job's output in `path` as it grows; return its last state and all of the output."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    shown = 0
    while True:
        state = as_user(layout, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()
        output = as_user(layout, "cat", path, check=False)
        # Whole lines only, so that no line is torn in two by the indent.
        whole = output if state in ENDED else output[: output.rfind("\n") + 1]
        for line in whole[shown:].splitlines():
            print(f"    {line}", flush=True)
        shown = max(shown, len(whole))
        if state in ENDED:
            return state, output
        if time.monotonic() > deadline:
            as_user(layout, "scancel", job, check=False)
            raise ClusterError(f"job {job} was still {state} after {JOB_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def train(layout: Layout) -> None:
    """Run the example on all nodes; then where one is sick, vetted and scored. Raises ClusterError."""
    if Path(MARKER).exists():
        raise ClusterError(f"{MARKER} exists on this machine, so it cannot tell an image from the host", f"rm {MARKER}")
    as_user(layout, "rm", "-rf", DIRECTORY)
    as_user(layout, "mkdir", DIRECTORY)
    as_user(layout, "tar", "--extract", "--directory", DIRECTORY, "--file", "-", stdin=packed(EXAMPLE))
    as_user(layout, "mkdir", f"{DIRECTORY}/disk")
    submit(layout, "job.sh", "train.out", node_names(NODES))
    print(f"Now the disk of {SICK} is full, the nodes are vetted first, and their GPUs, simulated ones, are scored.")
    fill_disk(layout)
    good = [node for node in node_names(NODES) if node != SICK]
    output = submit(layout, "vetted.sh", "vetted.out", good)
    if f"): {SICK}: scratch: " not in output or f"left out: --exclude={SICK}\n" not in output:
        raise ClusterError(f"the vetting did not say why {SICK} was left out")
    print(f"The report stays: {report(output, len(good))}")


def report(output: str, nodes: int) -> str:
    """Return the path of the step's report, which is there. Raises ClusterError: it was not scored as promised."""
    found: list[str] = REPORT_LINE.findall(output)
    size = f"{nodes * GPUS_PER_NODE} GPUs on {nodes} nodes"
    if "GPU saturation" not in output or size not in output:
        raise ClusterError(f"the scoring did not end with the score of {size}")
    # Nobody may take figures of the simulator for a device's.
    if "SIMULATED FIGURES" not in output:
        raise ClusterError("the score does not say that its GPUs are simulated")
    if len(found) != 1 or not Path(found[0]).is_file():
        raise ClusterError(f"the scoring left no report: {found}")
    return found[0]


def fill_disk(layout: Layout) -> None:
    """Put a file system that is too small where the sick node has its scratch space; it goes with the cluster."""
    state = load(layout.state_file)
    slurmd = state.find(f"slurmd-{SICK}") if state else None
    if slurmd is None:
        raise ClusterError(f"{SICK} is not running")
    small = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", f"{DIRECTORY}/disk"]
    enter = ["nsenter", f"--target={slurmd.pid}", "--mount", "--"]
    subprocess.run([*enter, *small], check=True, capture_output=True, timeout=30)


def submit(layout: Layout, script: str, output_name: str, nodes: Sequence[str]) -> str:
    """Submit a script of the example, follow it, check that it trained on `nodes`; return what it wrote."""
    print(f"As {USER}, in {DIRECTORY}: sbatch {script}", flush=True)
    began = time.monotonic()
    command = 'cd "$0" && exec sbatch --parsable "$1"'
    job = as_user(layout, "sh", "-c", command, DIRECTORY, script).strip().split(";")[0]
    state, output = follow(layout, job, f"{DIRECTORY}/{output_name}")
    seconds = time.monotonic() - began
    if state != "COMPLETED":
        for log in sorted(layout.log.glob("pioletd-*.log"))[:1]:
            print("\n".join([f"The last lines of {log}:", *(f"  | {line}" for line in tail(log))]))
        raise ClusterError(f"job {job} ended as {state} after {seconds:.1f} s")
    wrong = problems(output, nodes, len(nodes) * TASKS_PER_NODE)
    if wrong:
        raise ClusterError(f"job {job} is not what it should be: {'; '.join(wrong)}")
    ranks = len(nodes) * TASKS_PER_NODE
    print(f"{ranks} ranks on {len(nodes)} nodes, all in the image, the loss went down: {seconds:.1f} s.")
    return output


def main() -> int:
    status = on_a_cluster("demo-cluster", lifecycle.Request(NODES, piolet=True, gpus=GPUS_PER_NODE), train)
    if status == 0:
        print("The same by hand: make cluster, then examples/demo.")
    return status


if __name__ == "__main__":
    sys.exit(main())
