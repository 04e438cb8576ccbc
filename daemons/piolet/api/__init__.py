"""What evals, collectors, detectors and hooks are written against: the only package of Piolet that they import.

It runs under any Python from 3.8 on, since evals also run inside images (annotations are never evaluated there); it
imports the standard library only. API is the version of the contract: a number that grows when what was right for an
older one no longer is.
"""

from __future__ import annotations

from piolet.api.collectors import Collector, Device, Reading, Target, Unavailable
from piolet.api.detectors import CannotTell, Detector, Finding, Gpu, Limit, Observed
from piolet.api.evals import (
    EITHER,
    FAIL,
    INCONCLUSIVE,
    NODE,
    OUTCOMES,
    PASS,
    USER,
    Context,
    Eval,
    Inconclusive,
    Verdict,
    at_least,
    at_most,
    parameter,
    worst,
)
from piolet.api.hooks import (
    Account,
    Asked,
    Compatible,
    Entry,
    File,
    Files,
    Hook,
    Library,
    Link,
    Missing,
    Mount,
    Node,
    Notice,
    Program,
    Refused,
    Shared,
    Step,
    TaskVariable,
    Variable,
)
from piolet.api.quantities import GPU_QUANTITIES, HOST_QUANTITIES, Quantity
from piolet.api.sources import HOST, IO, NET, OF_NODE, OF_STEP, Place, Rates, Row, Source

API = 1

__all__ = [
    "API",
    "EITHER",
    "FAIL",
    "GPU_QUANTITIES",
    "HOST",
    "HOST_QUANTITIES",
    "INCONCLUSIVE",
    "IO",
    "NET",
    "NODE",
    "OF_NODE",
    "OF_STEP",
    "OUTCOMES",
    "PASS",
    "USER",
    "Account",
    "Asked",
    "CannotTell",
    "Collector",
    "Compatible",
    "Context",
    "Detector",
    "Device",
    "Entry",
    "Eval",
    "File",
    "Files",
    "Finding",
    "Gpu",
    "Hook",
    "Inconclusive",
    "Library",
    "Limit",
    "Link",
    "Missing",
    "Mount",
    "Node",
    "Notice",
    "Observed",
    "Place",
    "Program",
    "Quantity",
    "Rates",
    "Reading",
    "Refused",
    "Row",
    "Shared",
    "Source",
    "Step",
    "Target",
    "TaskVariable",
    "Unavailable",
    "Variable",
    "Verdict",
    "at_least",
    "at_most",
    "parameter",
    "worst",
]
