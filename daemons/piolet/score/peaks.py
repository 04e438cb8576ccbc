"""What a GPU model can reach: the peaks of its links, and the share of the time its units can be active at best.

A site's own figures, from `piolet score calibrate`, stand before this table. A model that is in neither gets
shares of 1 and no peaks of links: then communication cannot be judged, and the report says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piolet.base.errors import ScoreError

GIGA = 1e9


@dataclass(frozen=True)
class Peaks:
    """What saturation is measured against.

    eta_tensor, eta_fp64, eta_fp32, eta_fp16, eta_dram
        the activity that the best known code reaches, as a share of the counter's range
    nvlink, pcie, c2c
        bytes per second in one direction, all links of the GPU together; 0: there is none, or it is unknown
    source      where the figures come from
    """

    eta_tensor: float = 1.0
    eta_fp64: float = 1.0
    eta_fp32: float = 1.0
    eta_fp16: float = 1.0
    eta_dram: float = 1.0
    nvlink: float = 0.0
    pcie: float = 0.0
    c2c: float = 0.0
    source: str = "unknown model: activity as it is counted, links not judged"


# Links: NVIDIA's data sheets and architecture papers, which give the sum of both directions, halved. PCIe: the
# line rate after encoding. The shares eta are 1 until a device has been calibrated: NVIDIA's counters define 1
# as a unit that issues in every cycle, and what code reaches of that is a measurement, not a data sheet's figure.
_SHEET = "NVIDIA's data sheet for the links; activity as it is counted (not calibrated)"
_TABLE: tuple[tuple[str, Peaks], ...] = (
    ("GB200", Peaks(nvlink=900 * GIGA, pcie=63 * GIGA, c2c=450 * GIGA, source=_SHEET)),
    ("GH200", Peaks(nvlink=450 * GIGA, pcie=63 * GIGA, c2c=450 * GIGA, source=_SHEET)),
    ("B200", Peaks(nvlink=900 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("H100 PCIe", Peaks(nvlink=300 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("H100 NVL", Peaks(nvlink=300 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("H100", Peaks(nvlink=450 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("H200", Peaks(nvlink=450 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("H800", Peaks(nvlink=200 * GIGA, pcie=63 * GIGA, source=_SHEET)),
    ("A100", Peaks(nvlink=300 * GIGA, pcie=31.5 * GIGA, source=_SHEET)),
    ("A800", Peaks(nvlink=200 * GIGA, pcie=31.5 * GIGA, source=_SHEET)),
    ("L40", Peaks(pcie=31.5 * GIGA, source=_SHEET)),
    ("V100", Peaks(nvlink=150 * GIGA, pcie=15.75 * GIGA, source=_SHEET)),
)


def peaks_of(model: str, calibrations: Mapping[str, Peaks] | None = None) -> Peaks:
    """Return the peaks of a GPU model, as NVML names it ('NVIDIA H100 80GB HBM3')."""
    if calibrations and model in calibrations:
        return calibrations[model]
    for part, peaks in _TABLE:
        if part in model:
            return peaks
    return Peaks()


def to_json(calibrations: Mapping[str, Peaks]) -> str:
    """Return a calibration file: JSON, one object per model."""
    return json.dumps({model: dataclasses.asdict(peaks) for model, peaks in calibrations.items()}, indent=1) + "\n"


def from_json(text: str, origin: str) -> dict[str, Peaks]:
    """Return what `to_json` wrote. Raises ScoreError: it is not such a file; `origin` names it."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ScoreError(f"the calibration file {origin} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ScoreError(f"the calibration file {origin} must hold one object per GPU model")
    return {str(model): _peaks(entry, f"{origin}: {model}") for model, entry in data.items()}


def _peaks(entry: Any, where: str) -> Peaks:
    if not isinstance(entry, dict):
        raise ScoreError(f"{where}: not an object")
    known = {field.name for field in dataclasses.fields(Peaks)}
    for key, value in entry.items():
        if key not in known:
            raise ScoreError(f"{where}: unknown key '{key}'", f"known here: {', '.join(sorted(known))}")
        right = isinstance(value, str) if key == "source" else isinstance(value, int | float) and 0 <= value < 1e15
        if not right or (key.startswith("eta_") and not 0 < value <= 1):
            raise ScoreError(f"{where}: {key} cannot be {value!r}", "shares lie above 0 and at most at 1")
    return Peaks(**entry)


def from_file(path: Path) -> dict[str, Peaks]:
    """Return the peaks in a calibration file. Raises ScoreError: it cannot be read, or is none."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ScoreError(f"cannot read the calibration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScoreError(f"the calibration file {path} is not UTF-8") from None
    return from_json(text, str(path))
