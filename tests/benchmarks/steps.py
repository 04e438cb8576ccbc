"""What a step costs: without options, with a container, with many tasks, on many nodes."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.paired import Pairs, measure

_READY = re.compile(r"ready in ([0-9.]+) ms: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    pairs: Pairs
    aim: str = ""


def plugin_without_option(cluster: Cluster, rounds: int) -> Row:
    """A step without any option: plugins installed against taken out of plugstack.conf."""
    with cluster.without_plugins() as (here, aside):

        def bare() -> None:
            if here.exists():
                here.rename(aside)
            cluster.run("srun", "-N1", "true")

        def installed() -> None:
            if aside.exists():
                aside.rename(here)
            cluster.run("srun", "-N1", "true")

        # The renames are some microseconds in both.
        pairs = measure(bare, installed, rounds)
        return Row("srun -N1 true: plugins installed / not installed", pairs, "ratio <= 1.02")


def container(cluster: Cluster, rounds: int, *arguments: str, aim: str = "") -> Row:
    """A step with a container against the same step without."""
    pairs = measure(
        lambda: cluster.run("srun", *arguments, "true"),
        lambda: cluster.run("srun", *arguments, "--environment=demo", "true"),
        rounds,
    )
    return Row(f"srun {' '.join(arguments)}: container / bare", pairs, aim)


def phases(cluster: Cluster, rounds: int, runtime: str) -> dict[str, float]:
    """Return the median of each phase from START to READY on a warm node, in milliseconds, with 'all' first."""
    cluster.set_node_option("environment", "runtime", f'"{runtime}"')
    cluster.run("srun", "-w", "node1", "--environment=demo", "true")
    before = len(cluster.log("node1"))
    for _ in range(rounds):
        cluster.run("srun", "-w", "node1", "--environment=demo", "true")
    found: dict[str, list[float]] = {}
    for total, text in _READY.findall(cluster.log("node1")[before:]):
        found.setdefault("all", []).append(float(total))
        for phase in text.split(", "):
            name, _, value = phase.rpartition(" ")
            found.setdefault(name, []).append(float(value))
    return {name: statistics.median(values) for name, values in found.items()}
