"""Prints how detectors do on made runs: `python -m tests.scale.findings [runs|runs2] [SEEDS] [DETECTOR ...]`.

SEEDS are like 0-999. Of each detector: clean runs that it could judge (more seeds are taken until there are as many as
asked for), how many of these it found something in, and in how many of as many runs with its fault, at the stated
effect or above, it found it. "cannot tell" is no false positive and counts as a miss. Of `runs` detectors were tuned on
seeds below 1,000,000; unseen seeds are those above, and `runs2` is kept for acceptance. `--write` puts the figures into
observe/rates.json, `--seeds` prints the first seeds that went wrong, `--table` what is in the file: docs/detectors.md.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piolet.api import Detector
from piolet.observe import finding
from piolet.observe.grid import Grid

from tests.simulators.runs import FAULTS, Run

MOST_MORE = 6  # times as many clean runs are made at most, where a detector cannot judge most of them
RATES = Path(__file__).parents[2] / "daemons/piolet/observe/rates.json"


@dataclass
class Score:
    """What a detector came to: numbers of runs, and seeds of those where it was wrong."""

    clean: int = 0
    unknown: int = 0
    wrong: list[int] = field(default_factory=list)
    faulty: int = 0
    missed: list[int] = field(default_factory=list)
    blind: int = 0
    seconds: float = 0.0


def grid_of(run: Run) -> Grid:
    """Return a made run as detectors look at it."""
    return Grid(run)


def clean(generator: Any, seeds: Sequence[int], detectors: Sequence[Detector]) -> dict[str, Score]:
    """Return what detectors say of clean runs; a run is made once for all of them."""
    scores = {detector.name: Score() for detector in detectors}
    for seed in range(seeds[0], seeds[0] + MOST_MORE * len(seeds)):
        left = [one for one in detectors if scores[one.name].clean < len(seeds)]
        if not left:
            break
        grid = grid_of(generator.make(seed))
        for detector in left:
            score, begin = scores[detector.name], time.process_time()
            said = finding.judged(detector, grid)
            score.seconds += time.process_time() - begin
            _failed(said, seed)
            if said.state == finding.UNKNOWN:
                score.unknown += 1
                continue
            score.clean += 1
            if said.state == finding.FOUND:
                score.wrong.append(seed)
    return scores


def faulty(generator: Any, seeds: Sequence[int], detector: Detector, score: Score) -> None:
    """Add to a detector's score what it says of runs with its fault."""
    for seed in seeds:
        said = finding.judged(detector, grid_of(generator.make(seed, detector.name)))
        _failed(said, seed)
        score.faulty += 1
        if said.state != finding.FOUND:
            score.missed.append(seed)
            score.blind += said.state == finding.UNKNOWN


def _failed(said: finding.Judged, seed: int) -> None:
    if said.state == finding.FAILED:
        raise SystemExit(f"{said.detector} failed on seed {seed}: {said.reason}")


def most(hits: int, of: int) -> float:
    """Return the upper end of the one-sided 95 % interval of a rate (Clopper and Pearson 1934)."""
    if not of or hits >= of:
        return 1.0
    low, high = hits / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, of, middle) > 0.05 else (low, middle)
    return high


def _at_most(hits: int, of: int, rate: float) -> float:
    """Return the probability of `hits` or fewer of `of` at a rate."""
    terms = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        + k * math.log(rate) + (of - k) * math.log1p(-rate) for k in range(hits + 1)
    )  # fmt: skip
    return sum(math.exp(term) for term in terms) if 0 < rate < 1 else float(rate <= 0)


def row(name: str, score: Score) -> str:
    """Return a line of the table."""
    wrong, found = len(score.wrong), score.faulty - len(score.missed)
    bound = most(wrong, score.clean)
    fine = wrong <= 0.01 * score.clean and bound <= 0.02 and found >= 0.95 * score.faulty
    return (
        f"| `{name}` | {_stated(name)} | {score.clean:,} | {score.unknown:,} | "
        f"{100 * wrong / max(score.clean, 1):.1f} % ({100 * bound:.1f} %) | "
        f"{100 * found / max(score.faulty, 1):.1f} % | {'' if fine else '**not met**'} |"
    )


def _stated(name: str) -> str:
    unit = FAULTS[name].unit
    return f"{FAULTS[name].effect:g} {unit if unit != '1' else 'of 1'}"


def table() -> str:
    """Return docs/detectors.md's table of what was measured: a line for each detector and generator."""
    lines = [
        "| detector, version | effect from | on | seeds | clean, cannot tell | wrong of clean (at most) | found of "
        "faulty (at least) | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    known = json.loads(RATES.read_text())["detectors"]
    for name in finding.OWN:
        for one in known.get(name, {}).get("measured", ()):
            wrong, missed = one["false_positives"], one["faulty"] - one["found"]
            least = 100 * (1 - most(missed, one["faulty"]))
            lines.append(
                f"| `{name}` {known[name]['version']} | {_stated(name)} | `{one['generator']}` | {one['seeds']} | "
                f"{one['clean']:,}, {one['unknown']:,} | {wrong} ({100 * most(wrong, one['clean']):.1f} %) | "
                f"{one['found']:,} of {one['faulty']:,} ({least:.1f} %) | {one['date']} |"
            )
    return "\n".join(lines)


def write(generator: str, seeds: str, score: Score, detector: Detector, day: str) -> None:
    """Put what was measured of a detector into the file that findings have their confidence from."""
    known = json.loads(RATES.read_text()) if RATES.exists() else {"detectors": {}}
    known["about"] = "made by python -m tests.scale.findings --write; see docs/detectors.md"
    entry = known["detectors"].setdefault(detector.name, {"version": detector.version, "measured": []})
    if entry["version"] != detector.version:
        entry |= {"version": detector.version, "measured": []}
    entry["measured"] = [one for one in entry["measured"] if one["generator"] != generator]
    entry["measured"].append({
        "generator": generator, "seeds": seeds, "date": day, "clean": score.clean, "unknown": score.unknown,
        "false_positives": len(score.wrong), "false_positives_most": round(most(len(score.wrong), score.clean), 5),
        "faulty": score.faulty, "found": score.faulty - len(score.missed),
    })  # fmt: skip
    entry["measured"].sort(key=lambda one: one["generator"])
    RATES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def main(words: list[str]) -> int:
    """Print a table, and the first seeds that went wrong."""
    if "--table" in words:
        print(table())
        return 0
    wanted = [word for word in words if not word.startswith("-")]
    generator = wanted.pop(0) if wanted and wanted[0] in ("runs", "runs2") else "runs"
    seeds = wanted.pop(0) if wanted and wanted[0][0].isdigit() else "0-999"
    first, _, last = seeds.partition("-")
    detectors = [finding.load(name) for name in wanted or finding.OWN]
    print("| detector | effect from | clean | cannot tell | false positives (95 % bound) | found | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    module = importlib.import_module(f"tests.simulators.{generator}")
    every = range(int(first), int(last or first) + 1)
    scores = clean(module, every, detectors)
    for detector in detectors:  # one after the other, so that what is done is kept where the rest is broken off
        score = scores[detector.name]
        faulty(module, every, detector, score)
        print(row(detector.name, score), flush=True)
        if "--seeds" in words and (score.wrong or score.missed):
            print(f"    wrong {score.wrong[:12]}, missed {score.missed[:12]}, of these blind {score.blind}", flush=True)
        if "--write" in words:
            write(generator, seeds, score, detector, time.strftime("%Y-%m-%d", time.gmtime()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
