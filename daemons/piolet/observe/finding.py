"""Runs detectors on a step: each by itself, what it says checked, whatever it raises told and harmless.

`judged` is for those who trust detector and data; `bounded.py` does the same in a process that has a bound of time and
memory. A finding's confidence is 1 minus the upper 95 % bound of the rate of false positives that was measured on made
runs (rates.json; `python -m tests.scale.findings` makes it), the worse of two generators; a site's own detector has
none unless it brings one.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Observed
from piolet.api.detectors import with_confidence
from piolet.base.errors import ObserveError
from piolet.observe import sitefiles

# Name of the file in detectors/, and of its class: nothing is loaded to find a name.
OWN = {
    "silent_counters": "SilentCounters",
    "stale_counters": "StaleCounters",
    "idle_tail": "IdleTail",
    "data_loader_gaps": "DataLoaderGaps",
    "checkpoint_stall": "CheckpointStall",
    "straggler": "Straggler",
    "throttling": "Throttling",
    "link_retries": "LinkRetries",
    "slow_file_system": "SlowFileSystem",
    "memory_growth": "MemoryGrowth",
    "loss_spike": "LossSpike",
    "throughput_drift": "ThroughputDrift",
    "rank_hung": "RankHung",
    "waiting_on_one": "WaitingOnOne",
}
FOUND, NOTHING, UNKNOWN, FAILED = "found", "nothing", "unknown", "failed"
MOST = 50  # findings of a detector in a step
_TEXT_MOST, _EVIDENCE_MOST = 600, 4096
DIRECTORY = "/etc/piolet/detectors.d"


@dataclass(frozen=True)
class Judged:
    """What a detector came to: FOUND, NOTHING, UNKNOWN (it cannot tell) or FAILED, and why not."""

    detector: str
    version: int
    state: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    unit: str = ""


def names(directory: str = DIRECTORY) -> list[str]:
    """Return Piolet's detectors and the site's, by name; where both have one, the site's is taken."""
    return sorted({*OWN, *sitefiles.names(directory)})


def load(name: str, directory: str = DIRECTORY) -> Detector:
    """Return a detector by name, or by the path of a file, NAME.py, of who asks.

    Raises ObserveError: there is none, or it cannot be loaded or believed.
    """
    if name.endswith(".py"):
        return sitefiles.load(name, os.path.basename(name)[:-3], Detector, mine=True)()
    if name in sitefiles.names(directory):
        return sitefiles.load(os.path.join(directory, f"{name}.py"), name, Detector)()
    if name not in OWN:
        raise ObserveError(f"there is no detector {name!r}", f"there are {', '.join(names(directory))}")
    kind: type[Detector] = getattr(importlib.import_module(f"piolet.observe.detectors.{name}"), OWN[name])
    return kind()


def is_own(detector: Detector) -> bool:
    """Return whether it is Piolet's."""
    return type(detector).__module__.startswith("piolet.observe.detectors.")


def judged(detector: Detector, step: Observed) -> Judged:
    """Return what a detector says of a step; it never raises, but for what ends a process."""
    name, version = detector.name, detector.version
    try:
        with np.errstate(all="ignore"):
            found = [_checked(finding) for finding, _ in zip(detector.find(step), range(MOST), strict=False)]
    except CannotTell as error:
        return Judged(name, version, UNKNOWN, reason=str(error)[:_TEXT_MOST] or "it does not say why")
    except MemoryError:
        return Judged(name, version, FAILED, reason="it needs more memory than it may have")
    except Exception as error:  # noqa: BLE001 - whatever a detector does
        return Judged(name, version, FAILED, reason=f"{type(error).__name__}: {error}"[:_TEXT_MOST])
    if not found:
        return Judged(name, version, NOTHING)
    sure = confidence(name, version) if is_own(detector) else None
    whole = tuple(with_confidence(finding, sure) for finding in found)
    return Judged(name, version, FOUND, whole, unit=detector.unit)


def _checked(finding: object) -> Finding:
    """Return the finding if it is one that can be kept. Raises ValueError."""
    if not isinstance(finding, Finding):
        raise ValueError(f"it returned {type(finding).__name__}, and not a Finding")
    if not math.isfinite(finding.effect):
        raise ValueError("the effect of a finding is no number")
    if not (finding.text and finding.advice) or max(len(finding.text), len(finding.advice)) > _TEXT_MOST:
        raise ValueError(f"a finding has a text and an advice of at most {_TEXT_MOST} characters")
    for at in (finding.start, finding.end):
        if at is not None and not isinstance(at, int):
            raise ValueError("times are whole nanoseconds")
    if finding.confidence is not None and not 0 <= finding.confidence <= 1:
        raise ValueError("a confidence is between 0 and 1")
    if len(json.dumps(evidence(finding), allow_nan=False)) > _EVIDENCE_MOST:
        raise ValueError(f"the evidence is longer than {_EVIDENCE_MOST} bytes")
    return finding


def evidence(finding: Finding) -> dict[str, Any]:
    """Return the evidence as plain JSON values."""
    return {str(key): _plain(value) for key, value in finding.evidence.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def rows(many: Sequence[Judged]) -> dict[str, list[Any]]:
    """Return columns of the table `findings` for writing.write_table; the largest confidence first."""
    pairs = [(one, finding) for one in many for finding in one.findings]
    return {
        "detector": [one.detector for one, _ in pairs],
        "version": [one.version for one, _ in pairs],
        "node": [finding.node for _, finding in pairs],
        "subject": [finding.subject for _, finding in pairs],
        "start": [finding.start for _, finding in pairs],
        "end": [finding.end for _, finding in pairs],
        "effect": [finding.effect for _, finding in pairs],
        "unit": [finding.unit or one.unit for one, finding in pairs],
        "confidence": [finding.confidence for _, finding in pairs],
        "text": [finding.text for _, finding in pairs],
        "advice": [finding.advice for _, finding in pairs],
        "evidence": [json.dumps(evidence(finding), sort_keys=True) for _, finding in pairs],
    }


def verdicts(many: Sequence[Judged]) -> dict[str, list[Any]]:
    """Return columns of the table `judged`: what each detector came to, whether it found anything or not."""
    return {
        "detector": [one.detector for one in many],
        "version": [one.version for one in many],
        "state": [one.state for one in many],
        "reason": [one.reason or None for one in many],
    }


def confidence(name: str, version: int) -> float | None:
    """Return 1 minus the upper bound of the measured rate of false positives; None: it was not measured."""
    known = rates().get(name)
    if name not in OWN or not known or known.get("version") != version:
        return None
    return round(1 - max(float(one["false_positives_most"]) for one in known["measured"]), 4)


@cache
def rates() -> Mapping[str, Any]:
    """Return what was measured of each detector of Piolet's, by its name."""
    path = Path(__file__).with_name("rates.json")
    found: Mapping[str, Any] = json.loads(path.read_text())["detectors"] if path.exists() else {}
    return found


def all_of(detectors: Sequence[Detector], step: Observed) -> Iterator[Judged]:
    """Yield what each says."""
    for detector in detectors:
        yield judged(detector, step)
