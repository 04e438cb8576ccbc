"""The node's network interfaces: which there are, how fast each is, and how much of that the busiest one moves.

An interface is a port of a device. Its bytes are where its driver counts all of them: HPE Slingshot's CXI and
InfiniBand in counters of their own (messages of programs do not pass the kernel's network device), RoCE in those and in
the network device's, Ethernet in the latter. Bonds, bridges, VLANs and virtual functions go through one of these and
are left out, as is an interface that is down or does not say how fast it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_RATE = re.compile(r"([\d.]+) Gb/sec")  # of sysfs, /sys/class/infiniband/DEVICE/ports/PORT/rate
_WORD = 4  # bytes: what port_rcv_data and port_xmit_data count (Linux, ABI/stable/sysfs-class-infiniband)


@dataclass
class Interface:
    """A port. `rate` in bytes per second and direction; 0: not known.

    received, sent    files of counters that are added up, and the bytes of one count
    whole             the counters have all that passes, also what the network device counts
    """

    name: str = ""
    rate: float = 0.0
    received: list[tuple[Path, int]] = field(default_factory=list)
    sent: list[tuple[Path, int]] = field(default_factory=list)
    whole: bool = False


class Network:
    """The interfaces below `root`; `read` compares with the last time."""

    def __init__(self, root: str = "") -> None:
        self.interfaces = _find(Path(root + "/sys/class"))
        self._last: dict[str, tuple[float, float]] = {}
        self._taken = 0

    @property
    def rates(self) -> dict[str, float]:
        """The line rates, bytes per second in one direction, by name."""
        return {each.name: each.rate for each in self.interfaces}

    def read(self, now: int) -> tuple[float, float] | None:
        """Return the share of its line rate that the busiest interface moved in its busier direction since the last
        call, and the bytes per second there; None: there is nothing to compare. `now` in ns."""
        span, last = (now - self._taken) / 1e9 if self._taken else 0.0, self._last
        self._last, self._taken = {}, now
        busiest: tuple[float, float] | None = None
        for each in self.interfaces:
            try:
                counts = _sum(each.received), _sum(each.sent)
            except (OSError, ValueError):
                continue  # it has gone down, or its driver is being loaded anew
            self._last[each.name] = counts
            gains = [count - before for count, before in zip(counts, last.get(each.name, counts), strict=True)]
            if span > 0 and each.name in last and min(gains) >= 0:
                moved = max(gains) / span
                busiest = max(busiest or (0.0, 0.0), (min(1.0, moved / each.rate), moved))
        return busiest


def _sum(files: list[tuple[Path, int]]) -> float:
    # A value of CXI has its time behind an "@".
    return sum(float(path.read_text().partition("@")[0]) * factor for path, factor in files)


def _find(sysfs: Path) -> list[Interface]:
    found: dict[tuple[str, int], Interface] = {}

    def port(device: Path, number: int) -> Interface:
        return found.setdefault((str(device.resolve()), number), Interface())

    for path in _entries(sysfs / "cxi"):
        telemetry = path / "device" / "telemetry"
        files = [telemetry / f"hni_sts_{way}_ok_octets" for way in ("rx", "tx")]
        if all(file.exists() for file in files):
            one = port(path / "device", 1)
            one.name, one.whole = path.name, True
            one.received, one.sent = [(files[0], 1)], [(files[1], 1)]
    for path in _entries(sysfs / "infiniband"):
        for number in _entries(path / "ports"):
            files = [number / "counters" / name for name in ("port_rcv_data", "port_xmit_data")]
            if number.name.isdecimal() and "ACTIVE" in _text(number / "state") and all(f.exists() for f in files):
                one = port(path / "device", int(number.name))
                one.name = path.name if number.name == "1" else f"{path.name}:{number.name}"
                one.received, one.sent = [(files[0], _WORD)], [(files[1], _WORD)]
                one.whole = _text(number / "link_layer") == "InfiniBand"
                match = _RATE.search(_text(number / "rate"))
                one.rate = float(match[1]) * 1e9 / 8 if match else 0.0
    for path in _entries(sysfs / "net"):
        speed = _text(path / "speed")
        if (path / "device").exists() and not (path / "device" / "physfn").exists() and speed.isdecimal():
            offset = _text(path / "dev_port")
            one = port(path / "device", 1 + (int(offset) if offset.isdecimal() else 0))
            one.name = path.name
            one.rate = one.rate or int(speed) * 1e6 / 8
            if not one.whole:
                one.received.append((path / "statistics" / "rx_bytes", 1))
                one.sent.append((path / "statistics" / "tx_bytes", 1))
    return [each for each in found.values() if each.rate > 0]


def _entries(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(directory.iterdir())
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # also what an interface that is down says of its speed
