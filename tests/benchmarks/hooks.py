"""What hooks and devices add to a step's start, on a warm node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piolet.hooks import nvidia

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.paired import measure, sampled
from tests.benchmarks.steps import Row
from tests.simulators import driver

_AIM = "added <= 3 ms"
_ALL = "CDI, three hooks and five mounts"
_HOOK = """from piolet.api import File, Hook, Link, Variable


class Site(Hook):
    name = "site"
    text = "a file, a link and a variable"

    def entries(self, asked, node, step):
        return [File("/opt/site", "x"), Link("/opt/link", "/opt/site"), Variable("SITE", "here")]
"""
_HOOKS = 'com.hooks.slurm.enabled = "true"\ncom.pyxis.pytorch_remap_vars = "true"\ncom.hooks.site.enabled = "true"\n'


def rows(cluster: Cluster, rounds: int) -> list[Row]:
    """A container alone, against one with a driver of some forty files, three hooks, five mounts, or all of these.

    From START to READY, as pioletd says: some of it is hidden behind what slurmstepd does meanwhile. All of them once
    more as a whole srun.
    """
    found = []
    with _site(cluster) as places:
        mounts = "mounts = [" + ", ".join(f'"{place}"' for place in places) + "]\n"
        devices = 'devices = ["nvidia.com/gpu=all"]\n'
        annotations = f"[annotations]\n{_HOOKS}"
        texts = {
            "a driver of 40 files by CDI": devices,
            "three hooks": annotations,
            "five mounts": mounts,
            _ALL: devices + mounts + annotations,
        }
        for name, text in texts.items():
            file = cluster.directory / "edf" / "hooks.toml"
            file.write_text(f'base_environment = "demo"\n{text}')
            file.chmod(0o644)
            pairs = sampled(lambda: _ready(cluster, "demo"), lambda: _ready(cluster, "hooks"), rounds)
            found.append(Row(f"START to READY: {name} / a container", pairs, _AIM))
        whole = measure(lambda: _run(cluster, "demo"), lambda: _run(cluster, "hooks"), 2 * rounds)
        found.append(Row(f"srun -N1: {_ALL} / a container", whole, _AIM))
    return found


def _run(cluster: Cluster, environment: str) -> None:
    cluster.run("srun", "-w", "node1", f"--environment={environment}", "true")


def _ready(cluster: Cluster, environment: str) -> float:
    """Return how many seconds a step's container took."""
    before = len(cluster.log("node1"))
    _run(cluster, environment)
    end = time.monotonic() + 10
    while not (found := re.search(r"ready in ([0-9.]+) ms", cluster.log("node1")[before:])):
        assert time.monotonic() < end
        time.sleep(0.01)  # the log's line may come after the step's end
    return float(found[1]) / 1e3


@contextmanager
def _site(cluster: Cluster) -> Iterator[list[Path]]:
    """Give node1 a driver, a hook and five directories to mount."""
    etc, data = cluster.directory / "etc", cluster.directory / "data"
    places = [data / str(number) for number in range(5)]
    for place in (etc / "cdi", etc / "hooks.d", *places):
        place.mkdir(parents=True, exist_ok=True)
    root = driver.install(cluster.directory / "driver", whole=True)
    spec = etc / "cdi" / "nvidia.json"
    spec.write_text(json.dumps(nvidia.make(str(root))))
    (etc / "hooks.d" / "site.py").write_text(_HOOK)
    try:
        cluster.set_node_option("node", "verbose", "true")  # and restart pioletd
        yield places
    finally:
        spec.unlink()
        (etc / "hooks.d" / "site.py").unlink()
