"""What a GPU model can reach: the peaks of its links, and the share of the time its units can be active at best.

A site's own figures, from `piolet score calibrate`, stand before this table. A model that is in neither gets
shares of 1 and no peaks of links: then communication cannot be judged, and the report says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
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
    clock_sheet the clock, in MHz, at which the model has the tensor rate of its data sheet; 0: not known
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
    clock_sheet: float = 0.0
    source: str = "unknown model: activity as it is counted, links not judged"

    @property
    def is_known(self) -> bool:
        """Whether it is known which links there are."""
        return any((self.nvlink, self.pcie, self.c2c))


@dataclass(frozen=True)
class _Row:
    """What is known of the models whose name in NVML has `part` in it, the first row that fits.

    nvlink, pcie, c2c    GB/s in one direction
    clock_sheet          MHz, 0: not known for certain
    sheet, read          where it comes from, and when that was read: without them there is no row
    """

    part: str
    nvlink: float
    pcie: float
    c2c: float
    clock_sheet: float
    sheet: str
    read: str

    def __post_init__(self) -> None:
        if not self.part or not self.sheet.strip() or not self.read.strip():
            raise ValueError(f"the peaks of {self.part!r} have no source or no date")

    def peaks(self) -> Peaks:
        source = f"{self.sheet}, read in {self.read}, for the links; activity as it is counted (not calibrated)"
        rates = (self.nvlink * GIGA, self.pcie * GIGA, self.c2c * GIGA)
        return Peaks(nvlink=rates[0], pcie=rates[1], c2c=rates[2], clock_sheet=self.clock_sheet, source=source)


# Links: NVIDIA's data sheets and architecture papers, which give the sum of both directions, halved; of what was made
# for export NVIDIA has published no sheet, and the row says who told. PCIe: the line rate after encoding. The shares
# eta are 1 until a device has been calibrated: NVIDIA's counters define 1 as a unit that issues in every cycle, and
# what code reaches of that is a measurement, not a data sheet's figure.
# clock_sheet: the sheet's dense rate of 16-bit tensor operations over the multiprocessors and their operations per
# cycle (tests/unit/score/test_peaks.py has the three of each row). Operations per cycle: NVIDIA's architecture papers;
# of compute capability 9.0, 10.0 and 12.0 also github.com/NVIDIA/cudnn-frontend, benchmark (read in November 2026). 0
# where one of the three is not known: the multiprocessors of a GB200 are told to be 148 and 152, those of a B300 or
# GB300 were not found, and an H20's rate is no whole number of operations of its multiprocessors.
_PCIE3, _PCIE4, _PCIE5, _PCIE6 = 15.75, 31.5, 63.0, 121.0
_NOV = "November 2026"
_H800 = (
    "arXiv 2505.09343 (400 GB/s) and github.com/deepseek-ai/FlashMLA issue 75 (989 TFLOPS); NVIDIA has no public sheet"
)
_A800 = "NVIDIA to Reuters, 8 November 2022 (400 GB/s instead of the A100's 600); else as the NVIDIA A100 data sheet"
_H20 = "SemiAnalysis, 9 November 2023 (900 GB/s); NVIDIA has no public sheet"
_BLACKWELL = "NVIDIA Blackwell Architecture Technical Brief"
_TABLE = (
    _Row("GB300", 900, _PCIE6, 450, 0, "NVIDIA GB300 NVL72 data sheet", _NOV),
    _Row("GB200", 900, _PCIE5, 450, 0, f"{_BLACKWELL}, GB200 NVL72", _NOV),
    _Row("B300", 900, _PCIE6, 0, 0, "NVIDIA HGX B300 data sheet", _NOV),
    _Row("B200", 900, _PCIE5, 0, 1856, f"{_BLACKWELL}, HGX B200", _NOV),
    _Row("GH200", 450, _PCIE5, 450, 1830, "NVIDIA GH200 data sheet", _NOV),
    _Row("H100 PCIe", 300, _PCIE5, 0, 1620, "NVIDIA H100 data sheet", _NOV),
    _Row("H100 NVL", 300, _PCIE5, 0, 1545, "NVIDIA H100 NVL data sheet", _NOV),
    _Row("H100", 450, _PCIE5, 0, 1830, "NVIDIA H100 data sheet", _NOV),
    _Row("H200 NVL", 450, _PCIE5, 0, 1545, "NVIDIA H200 data sheet", _NOV),
    _Row("H200", 450, _PCIE5, 0, 1830, "NVIDIA H200 data sheet", _NOV),
    _Row("H800 PCIe", 200, _PCIE5, 0, 0, _H800, _NOV),
    _Row("H800", 200, _PCIE5, 0, 1830, _H800, _NOV),
    _Row("H20", 450, _PCIE5, 0, 0, _H20, _NOV),
    _Row("A100", 300, _PCIE4, 0, 1410, "NVIDIA A100 data sheet", _NOV),
    _Row("A800", 200, _PCIE4, 0, 1410, _A800, _NOV),
    _Row("A40", 56.25, _PCIE4, 0, 0, "NVIDIA A40 product brief PB-09976-001", _NOV),
    _Row("A30", 100, _PCIE4, 0, 1440, "NVIDIA A30 data sheet", _NOV),
    _Row("RTX PRO 6000 Blackwell Workstation Edition", 0, _PCIE5, 0, 2597, "NVIDIA RTX PRO 6000 product page", _NOV),
    _Row("RTX PRO 6000", 0, _PCIE5, 0, 0, "NVIDIA RTX PRO 6000 Blackwell data sheet", _NOV),
    _Row("RTX PRO 5000", 0, _PCIE5, 0, 0, "NVIDIA RTX PRO 5000 Blackwell data sheet", _NOV),
    _Row("RTX PRO 4500", 0, _PCIE5, 0, 0, "NVIDIA RTX PRO 4500 Blackwell data sheet", _NOV),
    _Row("L40S", 0, _PCIE4, 0, 2490, "NVIDIA L40S data sheet", _NOV),
    _Row("L40", 0, _PCIE4, 0, 0, "NVIDIA L40 data sheet", _NOV),
    _Row("NVIDIA L4", 0, _PCIE4, 0, 2040, "NVIDIA L4 data sheet", _NOV),
    _Row("V100", 150, _PCIE3, 0, 1530, "NVIDIA V100 data sheet", _NOV),
)
# Of a model that is not in the table: the least of what there is. One NVLink of generation 2; eight lanes of PCIe 3.0.
LEAST = {"nvlink": 25 * GIGA, "pcie": 7.88 * GIGA, "c2c": 450 * GIGA}


def peaks_of(model: str, calibrations: Mapping[str, Peaks] | None = None, pcie: float = 0.0) -> Peaks:
    """Return the peaks of a GPU model, as NVML names it ('NVIDIA H100 80GB HBM3').

    `pcie` is what the driver says of its link in this machine, B/s in one direction; 0: it does not say.
    """
    if calibrations and model in calibrations:
        return calibrations[model]
    return _known(model, pcie)


@functools.cache
def _known(model: str, pcie: float) -> Peaks:
    for row in _TABLE:
        # "NVIDIA L4" is no L40, and "H20" no H200: what follows the name is no letter and no digit.
        if re.search(rf"\b{re.escape(row.part)}\b", model):
            found = row.peaks()
            return dataclasses.replace(found, pcie=pcie) if pcie else found
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
