"""`piolet score run`: samples while a command runs here, without Slurm. The command is not touched: its standard
streams, its signals and its exit status are its own.

The sampler is a process of its own, as it is under pioletd: whatever becomes of it, the command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from piolet.api import Target
from piolet.base.errors import PioletError, ScoreError
from piolet.samples.append import Appender
from piolet.samples.choose import choose
from piolet.samples.journal import SUFFIX, open_for_writing
from piolet.samples.sampler import SampledStep, Sampler, Sink

_START_TIMEOUT_S, _STOP_TIMEOUT_S = 5.0, 10.0


class FileSink(Sink):
    """Writes frames into the journal itself, as they come."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._appender = Appender(fd)

    def put(self, data: bytes) -> None:
        """Write one frame, if there is room."""
        if not self.broken:
            try:
                self._appender.add(data)
            except OSError as error:
                self.broken = error.strerror or str(error)
        self.dropped += bool(self.broken)

    def finish(self) -> None:
        """Write at the end what must be known; see Appender."""
        with contextlib.suppress(OSError):
            self._appender.finish()


def run(
    command: Sequence[str], directory: Path, period: float, collector: str, gpus: tuple[str, ...] | None, label: str
) -> int:
    """Run `command` with a sampler beside it and return its exit status (128 + N for signal N).

    Raises ScoreError: the directory cannot be written, holds another data set, or the command cannot be started.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScoreError(f"cannot make the directory {directory}: {error.strerror}") from None
    if any(directory.glob("*" + SUFFIX)) or any(directory.glob("*.parquet")):
        raise ScoreError(f"{directory} holds a data set already", "name another directory with --out")
    node = os.uname().nodename.partition(".")[0]
    ready, told = os.pipe()
    arguments = [
        *(f"--directory={directory.absolute()}", "--node", node, "--period", str(period), "--collector", collector),
        # What a user wrote may begin with a dash.
        *(f"--label={label}", f"--command={' '.join(command)[:4096]}"),
        *("--ready", str(told), "--parent", str(os.getpid())),
        *([f"--gpus={','.join(gpus)}"] if gpus is not None else []),
    ]
    # Isolated: the command's directory and PYTHON* variables are made for another Python than this one.
    sampler = subprocess.Popen(
        [sys.executable, "-I", "-m", __name__, *arguments], pass_fds=[told], stdin=subprocess.DEVNULL,
        start_new_session=True, cwd="/", env=closed_environment(os.environ),
    )  # fmt: skip
    os.close(told)
    try:
        # It can be read when the sampler has begun, or has ended; a GPU library that hangs is not waited for.
        select.select([ready], [], [], _START_TIMEOUT_S)
        status = _child(command)
    finally:
        os.close(ready)
        sampler.terminate()
        try:
            sampler.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            sampler.kill()
            sampler.wait()
    return status


def closed_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that are for a user's Python."""
    return {name: value for name, value in environ.items() if not name.startswith("PYTHON")}


def _child(command: Sequence[str]) -> int:
    # The terminal's interrupt goes to the command; what it does with it is what counts.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(list(command), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    except OSError as error:
        raise ScoreError(f"cannot start {command[0]}: {error.strerror}") from None
    forward = {
        number: signal.signal(number, lambda n, _: process.send_signal(n)) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        status = process.wait()
    finally:
        for number, old in forward.items():
            signal.signal(number, old)
        signal.signal(signal.SIGINT, before)
    return 128 - status if status < 0 else status


def sample(argv: Sequence[str]) -> int:
    """Be the sampler of one data set until SIGTERM, or until the parent is gone."""
    parser = argparse.ArgumentParser()
    for name in ("directory", "node", "collector", "label", "command", "gpus"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--period", type=float)
    parser.add_argument("--ready", type=int)
    parser.add_argument("--parent", type=int)
    args = parser.parse_args(argv)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    gpus = None if args.gpus is None else tuple(filter(None, args.gpus.split(",")))
    collectors, why_not = choose(Target(gpus=gpus, period=args.period), args.collector)
    fd = open_for_writing(str(Path(args.directory) / f"{args.node}{SUFFIX}"))
    sampler = Sampler()
    step = SampledStep("local", "0", args.node, os.getuid(), args.label, args.command)
    sink = FileSink(fd)
    session = sampler.add(step, collectors, args.period, sink, why_not)
    os.close(args.ready)
    sampler.run_until(lambda: bool(stop) or os.getppid() != args.parent)
    sampler.remove(session)
    sink.finish()
    return 0


def main(argv: Sequence[str]) -> int:
    """Be the sampler; what it cannot do is said in a line, and the command goes on without."""
    try:
        return sample(argv)
    except PioletError as error:
        sys.stderr.write(f"piolet: warning: nothing is sampled: {error.message}\n")
    except Exception as error:  # noqa: BLE001 - the command beside it is the user's, and no place for a traceback
        sys.stderr.write(f"piolet: warning: nothing is sampled any more: {type(error).__name__}: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
