"""`make bench`: prints the ratios, and writes them to build/bench.json.

    python -m tests.benchmarks [--rounds 20] [--only NAME]…

Every figure is the median of pairs taken in turn in this run; the machine is described first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import attach, events, hooks, images, listing, recording, saving, scoring, steps, vetting
from tests.benchmarks.cluster import ROOT, Cluster, started
from tests.benchmarks.steps import Row


def machine() -> str:
    """Return what the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system}"


def show(row: Row) -> object:
    """Print a row; return it for the file."""
    p = row.pairs
    low, high = p.interval_ms()
    print(
        f"  {row.name}\n      {p.baseline_ms:8.1f} ms  {p.candidate_ms:8.1f} ms   added {p.added_ms:+6.2f} ms"
        f" [{low:+.2f}, {high:+.2f}]   ratio {p.ratio:.3f}   {row.aim}",
        flush=True,
    )
    return {
        "name": row.name,
        "pairs": len(p.baseline),
        "baseline_ms": p.baseline_ms,
        "candidate_ms": p.candidate_ms,
        "added_ms": p.added_ms,
        "added_ms_95": [low, high],
        "ratio": p.ratio,
        "aim": row.aim,
    }


def small(cluster: Cluster, rounds: int) -> list[object]:
    """Four nodes: what one step costs, and what more tasks add."""
    cluster.run("srun", "-N4", "--environment=demo", "true")
    rows = [
        steps.plugin_without_option(cluster, 2 * rounds),
        steps.container(cluster, 2 * rounds, "-N1", aim="added <= 12 ms, stretch 5 ms"),
        steps.container(cluster, rounds, "-N4", aim="nodes in parallel"),
        steps.container(cluster, rounds, "-N4", "--ntasks-per-node=2", aim="no growth with tasks"),
        steps.container(cluster, rounds, "-N4", "--ntasks-per-node=8", aim="no growth with tasks"),
    ]
    return list(map(show, rows))


def runtimes(cluster: Cluster, rounds: int) -> list[object]:
    """Where the time from START to READY goes: our own builder, and crun."""
    cluster.set_node_option("node", "verbose", "true")
    out: list[object] = []
    for runtime in ("native", "crun"):
        found = steps.phases(cluster, rounds, runtime)
        out.append({"runtime": runtime, "phases_ms": dict(found)})
        print(f"  START to READY, {runtime}: {found.pop('all'):.2f} ms")
        print("      " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    cluster.set_node_option("environment", "runtime", '"native"')
    return out


def pulls(cluster: Cluster, _rounds: int) -> list[object]:
    """The second pull, and many who want one image at the same time."""
    cluster.run("piolet", "image", "pull", cluster.demo_image)
    again = images.counted(cluster, [("alice", "piolet", "image", "pull", cluster.demo_image)])
    print(f"  second pull of an image that is there: {again.requests} registry requests   aim 0")
    cluster.forget_images()
    jobs: list[tuple[str, ...]] = [
        (user, "srun", "-N1", "--environment=demo", "true") for user in ("alice", "bob") for _ in range(4)
    ]
    many = images.counted(cluster, jobs)
    print(f"  2 users and 8 jobs want one new image at once: {many.conversions} conversion   aim 1", flush=True)
    return [{"second_pull_requests": again.requests, "conversions_for_8_jobs": many.conversions}]


def large(cluster: Cluster, rounds: int) -> list[object]:
    """32 nodes: the added time, with one task and with eight on each."""
    cluster.run("srun", "-N32", "--environment=demo", "true")
    rows = [
        steps.container(cluster, rounds, "-N32", aim="32 nodes share 2 cores here"),
        steps.container(cluster, rounds, "-N32", "--ntasks-per-node=4", aim="no growth with tasks"),
    ]
    return list(map(show, rows))


def score(cluster: Cluster, rounds: int) -> list[object]:
    """The sampler, and an application beside it."""
    return [show(scoring.application(cluster, rounds)), *scoring.show_cost()]


def report(_cluster: None, _rounds: int) -> list[object]:
    """A day of 1,024 GPUs."""
    return scoring.show_report()


def vet(cluster: Cluster, rounds: int) -> list[object]:
    """Vetting on 1, 4 and 32 of 32 nodes, a second time in a job, beside vetnode, and meetings of pairs."""
    aims = {1: "", 4: "added < 500 ms", 32: "added grows no more than the step"}
    rows = [vetting.added(cluster, rounds, nodes, aim) for nodes, aim in aims.items()]
    few = max(3, rounds // 3)  # they take seconds each
    rows += [vetting.cached(cluster, rounds), vetting.beside_vetnode(cluster, few), vetting.pair_rounds(cluster, few)]
    return [show(row) for row in rows]


def extras(cluster: Cluster, rounds: int) -> list[object]:
    """Hooks and devices."""
    return [show(row) for row in hooks.rows(cluster, rounds)]


def entering(cluster: Cluster, rounds: int) -> list[object]:
    """Containers of steps that run."""
    return [show(row) for row in attach.rows(cluster, rounds)]


def slurm(cluster: Cluster, rounds: int) -> list[object]:
    """pyslurm_ext beside Slurm's own commands."""
    return [show(row) for row in listing.listings(cluster, rounds)]


def records(cluster: Cluster, rounds: int) -> list[object]:
    """What happens on nodes: steps whose ends are recorded, and what watches the hardware for a minute."""
    rows = [
        Row("srun -N1 true: with piolet_outcomes / without", events.outcomes(cluster, 2 * rounds, "-N1", "true"), "0"),
        Row("srun -N4 -n8 true: the same", events.outcomes(cluster, rounds, "-N4", "-n8", "true"), "0"),
    ]
    out = list(map(show, rows))
    for found in events.watchers():
        print("  watcher: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
        out.append(found)
    return out


def record(_cluster: None, rounds: int) -> list[object]:
    """The recording of every step: starts, a program that computes, and the node, for a minute."""
    with recording.cluster() as made:
        rows = [recording.starts(made, rounds), recording.computes(made, rounds)]
        found = recording.cost(made, 60.0)
    print(f"  recording: {100 * found.cores:.3f} % of a core, {found.memory:.1f} MiB (their own {found.own:.1f}) in "
          f"{found.processes} processes   aim 0.5 %, 40 MB", flush=True)  # fmt: skip
    return [*map(show, rows), dataclasses.asdict(found)]


def keep(cluster: Cluster, rounds: int) -> list[object]:
    """Saving what a step changed."""
    cluster.run("srun", "-N1", "--environment=demo", "true")
    return [show(row) for row in saving.rows(cluster, max(3, rounds // 3))]


# Each with the number of nodes that it needs: 0 is no cluster at all.
GROUPS: dict[str, tuple[int, Callable[[Any, int], list[object]]]] = {
    "steps": (4, small),
    "runtimes": (4, runtimes),
    "events": (4, records),
    "recording": (0, record),
    "hooks": (4, extras),
    "attach": (4, entering),
    "pulls": (4, pulls),
    "score": (4, score),
    "report": (0, report),
    "vet": (32, vet),
    "slurm": (1, slurm),
    "saving": (1, keep),
    "large": (32, large),
}


def main() -> int:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="pairs of each measurement (default: 20)")
    parser.add_argument("--only", action="append", choices=sorted(GROUPS), help="only this group; may be repeated")
    chosen = parser.parse_args()
    print(machine())
    results: dict[str, object] = {"machine": machine()}
    names = chosen.only or list(GROUPS)
    for nodes in sorted({GROUPS[name][0] for name in names}):
        with started(nodes) if nodes else contextlib.nullcontext() as cluster:
            for name in names:
                if GROUPS[name][0] == nodes:
                    print(f"{name} ({nodes} nodes)")
                    results[name] = GROUPS[name][1](cluster, chosen.rounds)
    (ROOT / "build" / "bench.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print("written to build/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
