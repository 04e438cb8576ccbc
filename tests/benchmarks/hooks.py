"""What hooks and devices add to a step's start, on a warm node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piolet.hooks import nvidia

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.paired import measure
from tests.benchmarks.steps import Row
from tests.simulators import driver

_AIM = "added <= 3 ms"
_HOOK = """from piolet.api import File, Hook, Link, Variable


class Site(Hook):
    name = "site"
    text = "a file, a link and a variable"

    def entries(self, asked, node, step):
        return [File("/opt/site", "x"), Link("/opt/link", "/opt/site"), Variable("SITE", "here")]
"""
_HOOKS = 'com.hooks.slurm.enabled = "true"\ncom.pyxis.pytorch_remap_vars = "true"\ncom.hooks.site.enabled = "true"\n'


def rows(cluster: Cluster, rounds: int) -> list[Row]:
    """A container alone, against one with a driver of some forty files, three hooks, five mounts, or all of these."""
    found = []
    with _site(cluster) as places:
        mounts = "mounts = [" + ", ".join(f'"{place}"' for place in places) + "]\n"
        devices = 'devices = ["nvidia.com/gpu=all"]\n'
        annotations = f"[annotations]\n{_HOOKS}"
        texts = {
            "a driver of 40 files by CDI": devices,
            "three hooks": annotations,
            "five mounts": mounts,
            "CDI, three hooks and five mounts": devices + mounts + annotations,
        }
        for name, text in texts.items():
            file = cluster.directory / "edf" / "hooks.toml"
            file.write_text(f'base_environment = "demo"\n{text}')
            file.chmod(0o644)
            pairs = measure(
                lambda: cluster.run("srun", "-w", "node1", "--environment=demo", "true"),
                lambda: cluster.run("srun", "-w", "node1", "--environment=hooks", "true"),
                rounds,
            )
            found.append(Row(f"srun -N1: {name} / a container", pairs, _AIM))
    return found


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
        cluster.set_node_option("node", "verbose", "false")  # and restart pioletd
        yield places
    finally:
        spec.unlink()
        (etc / "hooks.d" / "site.py").unlink()
