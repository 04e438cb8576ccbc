"""Steps as clusters see them, in tables of observe/layout.py, and what was true. Committed before any detector.

A seed gives the same run, byte for byte. A run is first what its GPUs did (work, waiting in a collective, nothing) by
phases: start-up, training, checkpoints, evaluation, end (runbase.py); then what sensors make of that: noise, bursts,
lost samples, rows out of order and twice, clocks that differ, sources that a node does not have (runsense.py). A fault
changes what was done, or what a sensor says (runfaults.py). Clean runs have the harmless twin of each fault: short
checkpoints, a power limit that holds under full load, pipeline stages that differ, memory that grows and stops, a few
retries, a drop in load.

Shapes and rates are guesses after what training and serving look like on nodes of four GPUs with 700 W; what is known
is said beside it. `make(seed)` is clean, `make(seed, fault)` has one of FAULTS at its stated effect or above.
"""

from __future__ import annotations

import numpy as np

from tests.simulators import runsense
from tests.simulators.runbase import Run, Truth, phases, planned, world
from tests.simulators.runfaults import FAULTS

__all__ = ["FAULTS", "Run", "make"]

MOST = 2.5  # times its stated effect is the largest that is made


def make(seed: int, fault: str = "") -> Run:
    """Return the run of a seed."""
    draw = np.random.default_rng([seed, 1 + list(FAULTS).index(fault) if fault else 0])
    chosen = FAULTS.get(fault)
    plan = planned(draw, **(chosen.needs if chosen else {}))
    phase = phases(draw, plan)
    truth = Truth()
    effect = 0.0
    if chosen:
        effect = chosen.effect * min(draw.uniform(1, MOST), chosen.most / chosen.effect)
        truth = Truth(fault, end=plan.seconds, effect=effect)
        if chosen.phases:
            phase = chosen.phases(draw, plan, phase, truth)
    made = world(draw, plan, phase)
    made.truth = truth
    if chosen and chosen.deed:
        chosen.deed(made, effect)
    runsense.counters(made)
    runsense.application(made)
    if chosen and chosen.sense:
        chosen.sense(made, effect)
    return runsense.finished(made, seed)
