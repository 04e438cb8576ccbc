"""Scored steps of many nodes: files as the nodes leave them, and what a screen of them costs.

A few nodes are generated whole, and the others are copies under names of their own: the sums of a day are those of its
samples, but the files hold the samples of a minute only, for nobody reads them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from piolet.samples import dataset
from piolet.score.overview import summary_of

from tests.score.generate import Generated, facts, hosts, samples

ROOT = Path(__file__).resolve().parents[2]
KINDS = 4
_SHOW = """
import json, sys, time
from pathlib import Path
from piolet.cli.score import _screen, _summary
text = _screen(_summary(sys.argv[1], None), sys.stdout)
status = Path("/proc/self/status").read_text()
io = Path("/proc/self/io").read_text()
print(json.dumps({
    "cpu": time.process_time(),
    "memory": int(next(l for l in status.splitlines() if l.startswith("VmHWM:")).split()[1]) * 1024,
    "read": int(next(l for l in io.splitlines() if l.startswith("rchar:")).split()[1]),
    "text": text,
}))
"""


@dataclass(frozen=True)
class Shown:
    """What `piolet score show` costs: CPU seconds, most memory and bytes read; and what it shows."""

    cpu: float
    memory: int
    read: int
    text: str
    wall: float


def leave(directory: Path, nodes: int, seconds: float, period: float, gpus: int = 4) -> None:
    """Write what `nodes` nodes leave of a step."""
    directory.mkdir(parents=True)
    kinds = [_kind(directory, number, seconds, period, gpus) for number in range(KINDS)]
    for number in range(nodes):
        name = f"node{number:04}"
        for suffix, data in kinds[number % KINDS].items():
            (directory / (name + suffix)).write_bytes(data.replace(f"node{number % KINDS:04}".encode(), name.encode()))


def remove(directory: Path) -> None:
    """Remove what `leave` has written."""
    shutil.rmtree(directory)


def _kind(directory: Path, number: int, seconds: float, period: float, gpus: int) -> dict[str, bytes]:
    known = facts(number, gpus, seconds, period)
    summary = summary_of(Generated(directory, known))
    name = directory / known.header["node"]
    paths = {suffix: name.with_name(name.name + suffix) for suffix in (dataset.PARQUET, dataset.HOST_PARQUET)}
    dataset.write(paths[dataset.PARQUET], known, samples(number, gpus, 60, period), summary=summary)
    dataset.write(paths[dataset.HOST_PARQUET], known, hosts(60), host=True)
    return {suffix: path.read_bytes() for suffix, path in paths.items()}


def shown(directory: Path) -> Shown:
    """Show the score of a data set, in a process of its own."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _SHOW, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Shown(**json.loads(done.stdout), wall=time.monotonic() - began)


if __name__ == "__main__":
    leave(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    print(dataclasses.asdict(shown(Path(sys.argv[1]))) | {"text": ""})
