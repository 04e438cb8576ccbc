"""`piolet score run`: samples while a command runs here, without Slurm. The command is not touched: its standard
streams, its signals and its exit status are its own.

The sampler is a process of its own, as it is under pioletd: whatever becomes of it, the command goes on. So is what
writes its samples, and keeps them within a bound (writer.py).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from piolet.api import Target
from piolet.base.errors import PioletError, ScoreError
from piolet.samples.choose import choose
from piolet.samples.journal import SUFFIX
from piolet.samples.sampler import SampledStep, Sampler, Sink
from piolet.samples.writer import Summary, write

_START_TIMEOUT_S, _STOP_TIMEOUT_S = 5.0, 10.0


def run(
    command: Sequence[str], directory: Path, period: float, collector: str, gpus: tuple[str, ...] | None, label: str,
    bound: int, summary: Callable[[], Summary],
) -> int:  # fmt: skip
    """Run `command` with a sampler beside it and return its exit status (128 + N for signal N).

    bound      bytes that the samples may take
    summary    returns what makes the sums of them, as writer.write has it

    Raises ScoreError: the directory cannot be written, holds another data set, or the command cannot be started.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScoreError(f"cannot make the directory {directory}: {error.strerror}") from None
    if any(directory.glob("*" + SUFFIX)) or any(directory.glob("*.parquet")):
        raise ScoreError(f"{directory} holds a data set already", "name another directory with --out")
    node = os.uname().nodename.partition(".")[0]
    (ready, told), (source, target) = os.pipe(), os.pipe()
    writer = os.fork()
    if writer == 0:
        _write(source, (ready, told, target), str(directory.absolute()), node, bound, summary)
    arguments = [
        *("--node", node, "--period", str(period), "--collector", collector),
        # What a user wrote may begin with a dash.
        *(f"--label={label}", f"--command={' '.join(command)[:4096]}"),
        *("--ready", str(told), "--target", str(target), "--parent", str(os.getpid())),
        *([f"--gpus={','.join(gpus)}"] if gpus is not None else []),
    ]
    # Isolated: the command's directory and PYTHON* variables are made for another Python than this one.
    sampler = subprocess.Popen(
        [sys.executable, "-I", "-m", __name__, *arguments], pass_fds=(told, target), stdin=subprocess.DEVNULL,
        start_new_session=True, cwd="/", env=closed_environment(os.environ),
    )  # fmt: skip
    for descriptor in (told, source, target):
        os.close(descriptor)
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
        os.waitpid(writer, 0)
    return status


def _write(
    source: int, others: Sequence[int], directory: str, node: str, bound: int, summary: Callable[[], Summary]
) -> NoReturn:
    """Be the process that writes what the sampler tells, as that of a scored step does."""
    try:
        os.setsid()  # the terminal's signals are not for it
        for descriptor in others:
            os.close(descriptor)
        os.chdir("/")
        write(source, directory, node, "local.0", bound, summary)
    except PioletError as error:
        sys.stderr.write(f"piolet: warning: {error.message}\n")
    except Exception as error:  # noqa: BLE001 - the command beside it is the user's, and no place for a traceback
        sys.stderr.write(f"piolet: warning: samples are not kept any more: {type(error).__name__}: {error}\n")
    finally:
        os._exit(0)


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


def sample(args: argparse.Namespace) -> None:
    """Be the sampler of one data set until SIGTERM, or until the parent is gone."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    gpus = None if args.gpus is None else tuple(filter(None, args.gpus.split(",")))
    collectors, why_not = choose(Target(gpus=gpus, period=args.period), args.collector)
    sampler = Sampler()
    step = SampledStep("local", "0", args.node, os.getuid(), args.label, args.command)
    sink = Sink(args.target)
    session = sampler.add(step, collectors, args.period, sink, why_not)
    os.close(args.ready)
    sampler.run_until(lambda: bool(stop) or os.getppid() != args.parent)
    sampler.remove(session)
    end = time.monotonic() + _STOP_TIMEOUT_S
    while not sink.flush() and not sink.broken and time.monotonic() < end:
        select.select([], [args.target], [], 1)


def main(argv: Sequence[str]) -> int:
    """Be the sampler; what it cannot do is said in a line, and the command goes on without."""
    parser = argparse.ArgumentParser()
    for name in ("node", "collector", "label", "command", "gpus"):
        parser.add_argument(f"--{name}")
    for name in ("ready", "target", "parent"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--period", type=float)
    args = parser.parse_args(argv)
    try:
        sample(args)
        return 0
    except PioletError as error:
        sys.stderr.write(f"piolet: warning: nothing is sampled: {error.message}\n")
    except Exception as error:  # noqa: BLE001 - the command beside it is the user's, and no place for a traceback
        sys.stderr.write(f"piolet: warning: nothing is sampled any more: {type(error).__name__}: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
