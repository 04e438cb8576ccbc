"""What Slurm says of a job: its nodes, when it began, whether it can have others; and giving an allocation back."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from piolet.base import hostlist
from piolet.base.errors import SlurmError
from piolet.slurm.asking import ASK_S, ask

_PART = re.compile(r"\d+g\.|\d+c\.")
"""The name of a part of a GPU (MIG): '1g.10gb'."""


def nodes_of(job: int, environ: Mapping[str, str], scontrol: str = "scontrol") -> list[str]:
    """Return the job's nodes in Slurm's order. Raises SlurmError."""
    text = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""
    if not text or environ.get("SLURM_JOB_ID") != str(job):
        text = _ask(job, scontrol)
    nodes = hostlist.expand(text)
    if not nodes:
        raise SlurmError(f"job {job} has no nodes")
    return nodes


def started(job: int, scontrol: str = "scontrol") -> float:
    """Return when the job began, in seconds of the epoch, to the second. Raises SlurmError."""
    text = _ask(job, scontrol, "StartTime")
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        raise SlurmError(f"{scontrol} tells no start of job {job}: {text[:40]}") from None


def partition_of(job: str, scontrol: str = "scontrol") -> str:
    """Return the partition of a job, which may be named by its SLUID. Raises SlurmError."""
    return _ask(job, scontrol, "Partition")


def _ask(job: int | str, scontrol: str, field: str = "NodeList") -> str:
    command = [scontrol, "show", "job", "--oneliner", str(job)]
    well, out, said = ask(command, f"the nodes of job {job}", "standard")
    found = re.search(rf"(?<!\S){field}=(\S+)", out)
    if not well or found is None:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"{scontrol} cannot tell the {field} of job {job}: {why[0]}")
    return found[1]


def gpus_of(nodes: Sequence[str], scontrol: str = "scontrol") -> dict[str, int]:
    """Return how many GPUs Slurm has of each node, without those where they are divided (MIG). Raises SlurmError."""
    command = [scontrol, "show", "node", "--oneliner", hostlist.compress(nodes)]
    _, out, _ = ask(command, "the GPUs of the nodes")
    found = {}
    for line in out.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split() if word.startswith(("NodeName=", "Gres=")))
        # 'gpu:h100:4(S:0-1),shard:h100:32'; where there are none, '(null)'.
        gres = re.sub(r"\([^)]*\)", "", words.get("Gres", "")).split(",")
        gpus = [one.split(":") for one in gres if one.partition(":")[0] == "gpu"]
        if "NodeName" in words and "Gres" in words and not any(_PART.match(one[1]) for one in gpus if len(one) > 2):
            found[words["NodeName"]] = sum(int(one[-1]) if one[-1].isdecimal() else 1 for one in gpus)
    return found


def leaves(scontrol: str = "scontrol") -> dict[str, str]:
    """Return by node the switch that it hangs at, as topology.conf has it; nothing where Slurm knows of none.

    Raises SlurmError.
    """
    _, out, _ = ask([scontrol, "show", "topology"], "the topology")
    found = {}
    for line in out.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split())
        # Those above the lowest level have switches below them.
        if words.get("SwitchName") and words.get("Level") == "0" and words.get("Nodes"):
            found.update(dict.fromkeys(hostlist.expand(words["Nodes"]), words["SwitchName"]))
    return found


def impossible(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return why Slurm can never give the srun `command` its nodes, '' when it can, or does not say."""
    try:
        done = subprocess.run(
            [command[0], "--test-only", *command[1:]], capture_output=True, timeout=ASK_S, check=False,
            stdin=subprocess.DEVNULL, env=dict(environ),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return said[-1].rpartition(": ")[2][:300] if done.returncode and said else ""


def cancel(job: int, scancel: str) -> Callable[[], None]:
    """Begin to give an allocation back, and return what waits for its end. Both raise SlurmError.

    It goes on when this process is killed, and the terminal's Ctrl-C does not reach it.
    """
    lives = f"the allocation may live on: scancel {job}"
    try:
        process = subprocess.Popen(
            [scancel, str(job)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise SlurmError(
            f"cannot start {scancel}: {error.strerror}", f"the allocation lives on: scancel {job}"
        ) from None

    def wait() -> None:
        try:
            _, said = process.communicate(timeout=ASK_S)
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{scancel} {job} did not end within {ASK_S:g} s", lives) from None
        if process.returncode:
            raise SlurmError(f"{scancel} {job} failed: {said.decode('utf-8', 'replace').strip()[:300]}", lives)

    return wait
