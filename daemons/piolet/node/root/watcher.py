"""Watches this node's hardware for the server: the kernel's log, network ports, GPUs that vanish, processes that hang.

It opens the kernel's log as root and is then the account without privileges, with nothing but what it opened: all else
that it reads, anybody may read. What it finds goes to the server as messages; it takes none. Once in a while it says
that it is there: that beat goes from here through the server's loop to the disk, so a node without it has one of them
hung.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from piolet.events.envelope import KERNEL, ROOT
from piolet.node.root import kernelevents
from piolet.node.root.kernelevents import Line
from piolet.node.root.whose import NOBODY, SUBORDINATE, Whose, is_subordinate, whose
from piolet.node.shares import Sparse
from piolet.node.watching import MESSAGE_MAX, Seen
from piolet.transport import packets

_log = logging.getLogger("pioletd.watcher")

BURST_S = 60.0
_KEYS_MAX = 1000
_ODD_S = 3600.0
_ENTRIES_MAX = 2000
_ENTRY_BYTES = 8192
_KERNEL_THREAD = 0x00200000
_LOADED = b";NVRM: loading NVIDIA "
"""The driver of GPUs is loaded: they may be others than before."""
_WHOSE_S, _WHOSE_MAX = 1.0, 64
_WAITS = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_UID = re.compile(r"^Uid:\t(\d+)\t", re.MULTILINE)
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-f-]{10,60})\s*$", re.MULTILINE)


class Watcher:
    """`files` are open, or -1: the kernel's log, what was read of it, and a byte for each outcome that nobody took.

    every_s   how often it looks at what has no log, and says that it is there
    hardware  whether it looks
    root      in front of /proc and /sys, for tests
    """

    def __init__(
        self, server: socket.socket, files: tuple[int, int, int], every_s: float, hardware: bool = True, root: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._server = server
        self._kmsg, self._position, self._untaken = files
        self._every_s = every_s
        self._root = root
        self._hardware = hardware
        self._clock = clock
        self._read = self._read_before()
        self._odd = Sparse(_log, _ODD_S)
        self._bursts: dict[tuple[str, str], tuple[float, int, Seen]] = {}
        self._ports: dict[str, tuple[int, str]] = {}
        self._gpus: dict[str, str] = {}
        self._gone: set[str] = set()
        self._hanging: dict[tuple[int, int, str], float] = {}
        self._whose: dict[int, tuple[float, Whose]] = {}
        self._hang = False
        self._unsaid = 0

    def run(self) -> None:
        """Watch until the server ends."""
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        if self._kmsg >= 0:
            poll.register(self._kmsg, select.POLLIN)
        self._gpus = self._find_gpus() if self._hardware else {}
        look = self._clock()
        while True:
            for descriptor, events in poll.poll(max(0.0, look - self._clock()) * 1000):
                if descriptor == self._kmsg and has_ended(events):
                    poll.unregister(self._kmsg)
                elif descriptor == self._kmsg:
                    self.read_log()
                elif descriptor == self._server.fileno():
                    return
            if self._clock() >= look:
                look = self._clock() + self._every_s
                self.look()

    # -- the kernel's log

    def read_log(self) -> None:
        """Take what is new in the log, up to a bound: there may be more."""
        taken = False
        for _ in range(_ENTRIES_MAX):
            try:
                entry = os.read(self._kmsg, _ENTRY_BYTES)
            except BrokenPipeError:
                continue  # entries were overwritten before they were read; their numbers say how many
            except OSError:
                break
            if not entry:
                break
            number, age = _number_of(entry), _age_of(entry)
            if number <= self._read:
                continue
            if self._read >= 0 and number > self._read + 1:
                self._say(Seen("spool.dropped", ROOT, time.time() - age, body=_json(
                    records=number - self._read - 1, why="the kernel's log was overwritten before it was read"
                )))  # fmt: skip
            self._read, taken = number, True
            if _LOADED in entry:
                self._gpus = self._find_gpus()
            for line in kernelevents.events_of(entry):
                self._take(line, age)
        if taken and self._position >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._position, b"%020d\n" % self._read, 0)

    def _read_before(self) -> int:
        """Return the number of the last entry that an earlier watcher took since the boot, -1 for none."""
        if self._position < 0:
            return -1
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(self._position, 32, 0))
        return -1

    def _take(self, line: Line, age: float) -> None:
        uuid = self._gpus.get(line.device, "")
        subject = line.subject or (f"gpu:{uuid}" if uuid else "")
        own = (
            self._whose_of(line.pid, age) if line.pid is not None else Whose(self._user(line.uid), line.job, line.step)
        )
        body = _json(**line.body)
        seen = Seen(line.kind, KERNEL, time.time() - age, line.severity, subject, body, own.job, own.step, own.uid)
        # Of two users' programs each one's first is a record: rules count whose they are.
        key = line.kind, f"{line.key} {own.uid}"
        until, more, _ = self._bursts.get(key, (float("-inf"), 0, seen))
        now = self._clock()
        if now < until:
            self._bursts[key] = until, more + 1, seen
            return
        self._say_more(key)
        if len(self._bursts) >= _KEYS_MAX:
            self._say_more(next(iter(self._bursts)))
        self._bursts[key] = now + BURST_S, 0, seen
        self._say(seen)

    def _user(self, uid: int | None) -> int | None:
        return None if uid is None or is_subordinate(uid, f"{self._root}{SUBORDINATE}") else uid

    def _whose_of(self, pid: int, age: float) -> Whose:
        """Return whose a process is; what was found holds for a while, as one that faults does so in many lines."""
        now = self._clock()
        until, found = self._whose.get(pid, (float("-inf"), NOBODY))
        if now >= until:
            found = whose(pid, age, f"{self._root}/proc", f"{self._root}{SUBORDINATE}")
            self._whose.pop(pid, None)
            while len(self._whose) >= _WHOSE_MAX:
                del self._whose[next(iter(self._whose))]
            self._whose[pid] = now + _WHOSE_S, found
        return found

    def _end_bursts(self) -> None:
        now = self._clock()
        for key in [key for key, (until, _, _) in self._bursts.items() if now >= until]:
            self._say_more(key)

    def _say_more(self, key: tuple[str, str]) -> None:
        """End a burst, if it is one: say how much more there was of what was said at its first time."""
        _, more, seen = self._bursts.pop(key, (0.0, 0, None))
        if more and seen is not None:
            body = {**json.loads(seen.body), "more": more}
            self._say(replace(seen, body=_json(**body)))

    # -- what has no log

    def look(self) -> None:
        """Look at ports, GPUs and processes, and say that the node is there."""
        self._end_bursts()
        self._look_at_outcomes()
        for part in (self._look_at_ports, self._look_at_gpus, self._look_at_processes) if self._hardware else ():
            try:
                part()
            except (OSError, ValueError) as error:  # what is odd on one node is no reason to be silent there
                self._odd.error("this node's hardware cannot be looked at: %s", error)
        up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._say(Seen("node.heartbeat", ROOT, time.time(), body=_json(uptime_s=round(up_s))))

    def _look_at_outcomes(self) -> None:
        """Say how many outcomes slurmstepd could not hand over, since the last look or while there was no daemon."""
        with contextlib.suppress(OSError):
            count = os.fstat(self._untaken).st_size
            if count:
                os.ftruncate(self._untaken, 0)
                why = "pioletd took no outcome"
                self._say(Seen("spool.dropped", ROOT, time.time(), body=_json(records=count, why=why)))

    def _look_at_ports(self) -> None:
        for name, down, state, rate in self._told_of_ports():
            before = self._ports.get(name)
            self._ports[name] = down, rate
            if before is None or (down <= before[0] and (rate == before[1] or not rate or not before[1])):
                continue
            body = {"state": state, "flaps": max(0, down - before[0]), **({"rate": rate} if rate else {})}
            self._say(Seen("link.flap", KERNEL, time.time(), subject=f"port:{name}", body=_json(**body)))

    def _told_of_ports(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield of each port its name, how often it went down, its state and its rate."""
        for path in glob.iglob(f"{self._root}/sys/class/net/*/device"):
            directory = os.path.dirname(path)
            down = _number(f"{directory}/carrier_down_count")
            if down is not None:
                # A speed that is not told, as while a port is down, is none.
                rate = _text(f"{directory}/speed")
                state = _text(f"{directory}/operstate")
                yield os.path.basename(directory), down, state, rate if rate.isdigit() else ""
        for path in glob.iglob(f"{self._root}/sys/class/infiniband/*/ports/*/counters/link_downed"):
            port = os.path.dirname(os.path.dirname(path))
            down = _number(path)
            if down is not None:
                name = f"{os.path.basename(os.path.dirname(os.path.dirname(port)))}/{os.path.basename(port)}"
                state = _text(f"{port}/state").partition(":")[2].strip().lower()
                yield name, down, state, _text(f"{port}/rate").partition(" ")[0]

    def _find_gpus(self) -> dict[str, str]:
        """Return the UUID of each GPU, by its address on the bus, as NVIDIA's driver says them."""
        found = {}
        for path in glob.iglob(f"{self._root}/proc/driver/nvidia/gpus/*/information"):
            match = _UUID.search(_text(path, 4096))
            if match is not None:
                found[kernelevents.address(os.path.basename(os.path.dirname(path)))] = match[1]
        return found

    def _look_at_gpus(self) -> None:
        for address, uuid in self._gpus.items():
            there = os.path.exists(f"{self._root}/sys/bus/pci/devices/{address}.0")
            if there:
                self._gone.discard(address)
            elif address not in self._gone:
                self._gone.add(address)
                self._say(Seen("gpu.lost", ROOT, time.time(), "fatal", f"gpu:{uuid}", _json(pci=address)))

    def _look_at_processes(self) -> None:
        """Say of processes that wait in state D since the last look; once for each time that there are some."""
        now = self._clock()
        accounts = dict(self._in_state_d())
        self._hanging = {key: self._hanging.get(key, now) for key in accounts}
        old = {key: now - since for key, since in self._hanging.items() if now - since >= self._every_s}
        told, self._hang = self._hang, bool(old)
        if old and not told:
            found = {accounts[key] for key in old} - {""}
            known = sum(self._user(int(uid)) is not None for uid in found)
            body = _json(processes=len(old), seconds=round(max(old.values())), **({"accounts": known} if known else {}))
            self._say(Seen("fs.blocked", ROOT, time.time(), body=body))

    def _in_state_d(self) -> Iterator[tuple[tuple[int, int, str], str]]:
        """Yield what tells a process's wait from its next one, and its uid, '' where that is not told.

        Who reads much is in state D at many looks.
        """
        for name in os.listdir(f"{self._root}/proc"):
            if not name.isdigit():
                continue
            text = _text(f"{self._root}/proc/{name}/stat", 1024)
            fields = text[text.rfind(")") + 2 :].split()
            if len(fields) > 19 and fields[0] == "D" and not int(fields[6]) & _KERNEL_THREAD:
                status = _text(f"{self._root}/proc/{name}/status", 4096)
                waits, uid = _WAITS.search(status), _UID.search(status)
                yield (int(name), int(fields[19]), waits[1] if waits else ""), uid[1] if uid else ""

    def _say(self, seen: Seen) -> None:
        """Send it; what a server that hangs does not take is counted, and told before the next that it takes."""
        more = _json(records=self._unsaid, why="the server took nothing")
        lost = [Seen("spool.dropped", ROOT, time.time(), body=more)] if self._unsaid else []
        for one in [*lost, seen]:
            data = packets.encode(one, compact=True)
            try:
                if len(data) > MESSAGE_MAX:
                    raise BlockingIOError
                self._server.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._unsaid += 1
                return
            except OSError:
                return  # it has ended
            self._unsaid = 0


def has_ended(events: int) -> bool:
    """Return whether poll(2) says that no more will come: an error only says that entries were overwritten."""
    return bool(events & (select.POLLHUP | select.POLLNVAL)) and not events & select.POLLIN


def _age_of(entry: bytes) -> float:
    """Return how many seconds ago an entry was written, 0 where it does not say."""
    fields = entry.partition(b";")[0].split(b",")
    if len(fields) < 3 or not fields[2].isdigit():
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - int(fields[2]) / 1e6)


def _number_of(entry: bytes) -> int:
    fields = entry.partition(b";")[0].split(b",")
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else -1


def _json(**body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


def _text(path: str, most: int = 256) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read(most) or b"").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
