"""Detectors in a process of their own, with a bound of time and memory: what one does harms no other, and nobody else.

    Judge    here        a line of JSON: directory of the step, name of the detector
    serve    the worker  a line of JSON: what it came to, and its findings

The worker keeps the last step's figures for the next detector. One that takes longer than `seconds` is ended, as is one
that the kernel ends for lack of memory, or that crashes: that detector has failed on that step, a new worker goes on.
Whose rights: those of who calls; a site's detector is root's file, so it runs with no less right than Piolet itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piolet.api import Finding
from piolet.base.errors import PioletError
from piolet.observe import finding, layout, reading, writing
from piolet.observe.finding import FAILED, Judged
from piolet.observe.grid import Grid
from piolet.system import linux

SECONDS = 60.0  # for a detector and a step, reading its data included
MEMORY = 6 << 30  # address space; Arrow reserves more than it uses
START_S = 60.0  # until a worker has loaded its libraries
_ANSWER_MOST = 4 << 20


@dataclass(frozen=True)
class Request:
    """A step's directory, and the name of a detector."""

    directory: Path
    detector: str


class Judge:
    """Asks detectors by a worker that is started when it is needed; for one thread.

    site      the directory of the site's own
    seconds   for each detector and step
    memory    bytes of address space of the worker
    """

    def __init__(self, site: str = finding.DIRECTORY, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._site, self._seconds, self._memory = site, seconds, memory
        self._worker: _Worker | None = None

    def ask(self, request: Request) -> Judged:
        """Return what a detector comes to."""
        if self._worker is None:
            self._worker = _Worker(self._site, self._memory)
        said = self._worker.ask(request, self._seconds)
        if not self._worker.alive:
            self.rest()
        return said

    def find(self, directory: Path) -> list[Judged]:
        """Return what all detectors say of a step."""
        return [self.ask(Request(directory, name)) for name in finding.names(self._site)]

    def keep(self, directory: Path) -> list[Judged]:
        """Run all detectors on a step, and write `findings` and `judged` beside its data. Raises ObserveError."""
        said = self.find(directory)
        writing.write_table(directory, "findings", finding.rows(said))
        writing.write_table(directory, "judged", finding.verdicts(said))
        return said

    def rest(self) -> None:
        """End the worker; another one is started when it is needed."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None


def judge(
    requests: Iterable[Request], site: str = finding.DIRECTORY, seconds: float = SECONDS, memory: int = MEMORY
) -> Iterator[tuple[Request, Judged]]:
    """Yield what detectors come to, in the order of the requests; the arguments are a Judge's."""
    one = Judge(site, seconds, memory)
    try:
        for request in requests:
            yield request, one.ask(request)
    finally:
        one.rest()


def find(directory: Path, site: str = finding.DIRECTORY) -> list[Judged]:
    """Return what all detectors say of a step."""
    return [said for _, said in judge([Request(directory, name) for name in finding.names(site)], site)]


def keep(directory: Path, site: str = finding.DIRECTORY) -> list[Judged]:
    """Run all detectors on a step, and write what they say beside its data. Raises ObserveError."""
    one = Judge(site)
    try:
        return one.keep(directory)
    finally:
        one.rest()


class _Worker:
    def __init__(self, site: str, memory: int) -> None:
        words = [sys.executable, "-P", "-m", "piolet.observe.bounded", site, str(memory)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._buffer = b""
        self.alive = True
        if self._line(START_S) is None:
            self.alive = False

    def ask(self, request: Request, seconds: float) -> Judged:
        """Return what a detector came to; `alive` is false afterwards if the worker has to be replaced."""
        version = 0
        if not self.alive:
            return Judged(request.detector, version, FAILED, reason="its process did not start")
        said = json.dumps({"directory": str(request.directory), "detector": request.detector}).encode() + b"\n"
        begin = time.monotonic()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(said)
            self._process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            line = None
        if line is not None:
            try:
                return _judged(json.loads(line))
            except (ValueError, KeyError, TypeError):
                line = None
        self.alive = False
        if time.monotonic() - begin >= seconds:
            return Judged(
                request.detector, version, FAILED, reason=f"it took longer than {seconds:.0f} s and was ended"
            )
        self._process.kill()
        status = self._process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return Judged(request.detector, version, FAILED, reason=f"its process ended: {how}")

    def _line(self, seconds: float) -> bytes | None:
        """Return a line of the worker, or None: it ended, or said none in time."""
        deadline = time.monotonic() + seconds
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            more = os.read(descriptor, 1 << 16)
            if not more or len(self._buffer) > _ANSWER_MOST:
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def end(self) -> None:
        """End the process, and wait for it."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()


def _judged(said: dict[str, Any]) -> Judged:
    many = tuple(Finding(**one) for one in said["findings"])
    return Judged(said["detector"], int(said["version"]), said["state"], many, said["reason"], said["unit"])


def serve(site: str, memory: int) -> None:
    """Answer requests until there are no more."""
    linux.die_with_parent(signal.SIGKILL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    for what, limits in ((resource.RLIMIT_AS, (soft, hard)), (resource.RLIMIT_CORE, (0, 0))):
        with contextlib.suppress(OSError):  # a unit may forbid it: then its control group is the bound
            resource.setrlimit(what, limits)
    answers = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what a detector prints is nobody's answer

    answers.write(b"ready\n")
    last: tuple[str, Grid] | None = None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        name = asked["detector"]
        try:
            detector = finding.load(name, site)
            if last is None or last[0] != asked["directory"]:
                last = None
                last = (asked["directory"], Grid(opened(Path(asked["directory"]))))
            said = finding.judged(detector, last[1])
        except PioletError as error:
            said = Judged(name, 0, FAILED, reason=error.message)
        except MemoryError:
            last = None
            said = Judged(name, 0, FAILED, reason="it needs more memory than it may have")
        answers.write(_line_of(said))


def _line_of(said: Judged) -> bytes:
    many = [
        {
            "effect": float(one.effect), "text": one.text, "advice": one.advice, "start": one.start, "end": one.end,
            "node": one.node, "subject": one.subject, "evidence": finding.evidence(one),
            "confidence": one.confidence, "unit": one.unit,
        }
        for one in said.findings
    ]  # fmt: skip
    plain = {
        "detector": said.detector, "version": said.version, "state": said.state, "findings": many,
        "reason": said.reason, "unit": said.unit,
    }  # fmt: skip
    return json.dumps(plain).encode() + b"\n"


def opened(directory: Path) -> Any:
    """Return a step's data, or a data set of --score as such. Raises PioletError."""
    if (directory / layout.META_FILE).exists() or not directory.is_dir():
        return reading.open_step(directory)
    return reading.from_score(directory)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
