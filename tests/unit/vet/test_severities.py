"""The tables of severities: no row without its source and date, and what the rows say of lines of the kernel's log."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import time
from typing import Any

import pytest
from piolet.api import FAIL, PASS, Context, Inconclusive
from piolet.vet import evals
from piolet.vet.evals import _log, _nvlinks, _severities, kernel_log
from piolet.vet.evals._severities import Severity


@pytest.mark.parametrize(
    ("source", "date"),
    [("", "2025-10-29"), ("  ", "2025-10-29"), ("NVIDIA", ""), ("NVIDIA", "last year"), ("NVIDIA", "2025-13-01")],
)
def test_no_row_without_source_and_date(source: str, date: str) -> None:
    with pytest.raises(ValueError, match="severity of xid 79 names no source"):
        Severity("xid", "79", "fail", "reset", "it is gone", source, date)
    with pytest.raises(ValueError, match="source"):
        _nvlinks.Board("H100", (), source, date)


def rows_of_tables() -> list[tuple[Any, str]]:
    """Return every class below vet/evals that is a row with a source, and the directory's dataclasses without one."""
    found = []
    for module in pkgutil.iter_modules(evals.__path__):
        loaded = importlib.import_module(f"{evals.__name__}.{module.name}")
        for value in vars(loaded).values():
            if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == loaded.__name__:
                names = {field.name for field in dataclasses.fields(value)}
                found.append((value, "row" if names & {"source", "date"} else "other"))
    return found


def test_no_table_of_the_evals_takes_a_row_without_source_and_date() -> None:
    """Whatever a file calls its rows: what has a source has a date, and neither may be empty."""
    rows = [kind for kind, what in rows_of_tables() if what == "row"]
    assert {kind.__name__ for kind in rows} >= {"Severity", "Board", "Counter"}
    for kind in rows:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert fields.keys() >= {"source", "date"}, f"{kind.__name__} has one of them only"
        assert all(fields[name].default is dataclasses.MISSING for name in ("source", "date")), kind.__name__
        given: dict[str, Any] = dict.fromkeys(fields, "fail") | {"source": "NVIDIA", "date": "2025-10-29"}
        given |= {"action": "reset"} if "action" in fields else {}
        kind(**given)
        for name in ("source", "date"):
            with pytest.raises(ValueError, match="source"):
                kind(**{**given, name: ""})


def test_no_row_of_an_unknown_severity() -> None:
    with pytest.raises(ValueError, match="not one of"):
        Severity("xid", "79", "terrible", "reset", "it is gone", "NVIDIA", "2025-10-29")


def test_every_row_is_of_its_table() -> None:
    for kind, rows in _severities.TABLES.items():
        assert rows
        for code, row in rows.items():
            assert (row.kind, row.code) == (kind, code)


def test_what_is_unknown_is_a_warning() -> None:
    assert _severities.find("xid", "4711").severity == "warn"
    assert _severities.find("xid", "145").severity == "warn"
    assert _severities.find("xid", "145", "nonfatal").severity == "ignore"
    assert _severities.find("xid", "79", "fatal").severity == "fail"


def check(*lines: str) -> tuple[str, str]:
    facts = {"kernel_log": list(lines)}
    verdict = kernel_log.KernelLog().check(Context("n1", time.monotonic() + 10, facts=facts))
    return verdict.outcome, verdict.reason


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        ("pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:01:00.0", FAIL, "a fatal PCIe error"),
        ("nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction", FAIL, "a fatal PCIe"),
        ("nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=x", PASS, "an uncorrected PCIe"),
        ("pcieport 0000:00:01.0: AER: Corrected error received: 0000:01:00.0", PASS, ""),
        ("pcieport 0000:00:01.0: PCIe Bus Error: severity=Corrected, type=Physical Layer", PASS, ""),
        ("{1}[Hardware Error]: event severity: fatal", FAIL, "a fatal hardware error"),
        ("{1}[Hardware Error]: event severity: recoverable", PASS, "a hardware error that was recovered"),
        ("{1}[Hardware Error]: event severity: corrected", PASS, ""),
        ("mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 7: be00000000800400", FAIL, "a machine check"),
        ("mce: [Hardware Error]: CPU 3: Machine Check Event: 0 Bank 7: 8c00004000010090", PASS, ""),
        ("[Hardware Error]: Uncorrected, software restartable error.", FAIL, "an uncorrected machine check"),
        ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0", FAIL, "an uncorrected memory error"),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0", PASS, ""),
        ("Memory failure: 0x1234: recovery action for dirty LRU page: Recovered", PASS, "was taken out of use"),
        ("Memory failure: 0x1234: recovery action for high-order kernel page: Ignored", FAIL, "still in use"),
        ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10", PASS, "was reset"),
        ("nvme nvme0: Removing after probe failure status: -19", FAIL, "an NVMe drive is gone"),
        ("CPU3: Core temperature is above threshold, cpu clock is throttled (total events = 1)", PASS, "too hot"),
        ("mlx5_core 0000:81:00.0: poll_health:833: device's health compromised - reached miss count", FAIL, "adapter"),
        ("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x40:1860)", FAIL, "could not be initialised"),
        ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", PASS, ""),  # gpu_health's, of the step's GPUs
        ("mlx5_core 0000:81:00.0: Port: 1 Link ACTIVE", PASS, ""),
    ],
)
def test_hardware_faults_of_the_kernels_log(line: str, outcome: str, reason: str) -> None:
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    found = check(f"[{now - 300:12.6f}] {line}")
    assert found[0] == outcome, found
    assert (reason in found[1] and "5 min ago: " in found[1]) if reason else found[1] == ""


def test_a_fault_is_named_once_and_warnings_get_old() -> None:
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    fatal = "pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:01:00.0"
    lines = [f"[{now - 600 + number:12.6f}] {fatal}" for number in range(7)]
    assert check(*lines)[1].startswith("a fatal PCIe error, 7 times, last 10 min ago: pcieport")
    events = _log.node_events([f"[{1.0:12.6f}] nvme nvme0: controller is down; will reset: x"], now=2 * 86400.0)
    assert [event.age for event in events] == [pytest.approx(2 * 86400.0 - 1.0)]


def test_a_fault_counts_until_a_reboot_or_as_long_as_a_site_says() -> None:
    facts = {"kernel_log": [f"[{1.0:12.6f}] EDAC MC0: 1 UE memory read error"]}
    where = Context("n1", time.monotonic() + 10, facts=facts)
    assert kernel_log.KernelLog().check(where).outcome == FAIL
    assert kernel_log.KernelLog(fault_age=0.5).check(where).outcome == PASS


def test_a_driver_that_was_loaded_again_has_its_gpus() -> None:
    failed = "[    9.000000] NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x40:1860)"
    assert check(failed)[0] == FAIL
    assert check(failed, "[   99.000000] NVRM: loading NVIDIA UNIX Open Kernel Module") == (PASS, "")


def test_a_log_that_cannot_be_read_is_not_clean() -> None:
    with pytest.raises(Inconclusive, match="cannot be read"):
        kernel_log.KernelLog().check(Context("n1", time.monotonic() + 10))
    assert check() == (PASS, "")
