"""The two ends of a scored step in srun: the request becomes a definition, and the data set becomes a screen.

`end` runs after the step, on behalf of srun, whose exit status it does not touch: it says what it could not do, takes a
bounded time, and never raises.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from piolet import __file__ as package_file
from piolet.base import files
from piolet.base.errors import ConfigError, PioletError, ScoreError
from piolet.cli import origin
from piolet.cli.main import printable
from piolet.observe import results
from piolet.samples.request import DEFAULT_OUT, Wish, from_json, parse, period_of
from piolet.samples.settings import ScoreConfig
from piolet.site.config import DEFAULT_PATH, Config
from piolet.steps import identity
from piolet.system.accounts import own_name

VARIABLE = "SLURM_PIOLET_SCORE"
_POLL_S = 0.05
_TAIL = 64 << 10
_SMALL = 4 << 20
_FIRST_S = 1.0  # a node that samples has begun its file when its first task began
_READ_S, _LEAST_S = 0.8, 0.3  # of the wait, so much is for reading; and so much is waited in any case
_HTML_S = 10
_APART_S = 300  # two nodes' clocks at most
_BEGUN = time.monotonic()


def submit(request: str, descriptor: int, config: str | None, settings: Config) -> int:
    """Write the record of what the request means to the descriptor, and keep it for the next srun.

    Raises ScoreError, ConfigError: the request or the site's defaults are wrong, or this is root (decision 53).
    """
    from piolet.cli import batch
    from piolet.cli.env import this_host
    from piolet.submission import cache, record

    if os.getuid() == 0:
        raise ScoreError("a step of root is not scored", "start it as another user, or without --score")
    called = batch.script()
    batch.check_parts(called, batch.SCORE)
    host = this_host()
    host.watch(config or str(DEFAULT_PATH))
    host.watch(package_file)
    started = time.time_ns()
    wish = parse(request, host.cwd, _default(settings, host.variables))
    definition = wish.to_json()
    taken = _is_taken(wish.out, host)
    place = record.Script.BARE if batch.is_bare(called, batch.SCORE) else record.Script.OUTSIDE
    record.write(descriptor, record.packed(definition, request, host.cwd, place))
    if taken:
        # Said before a long step, not after it. No error: scoring makes no step fail.
        said = f"{wish.out} holds a data set already\nhint: name another directory with out=, or remove this one"
        print(f"piolet: warning: no score: {printable(said)}", file=sys.stderr)
        return 0
    path = cache.path_of(host.variables, host.cwd, request, config or "", os.getuid(), "score")
    whole = record.pack(definition, request, host.cwd, host.dependencies)
    if whole and path and cache.is_settled(host.dependencies, started):
        cache.store(path, whole)
    return 0


def _is_taken(out: str, host: Any) -> bool:
    """Return whether samples lie in a directory that is not each step's own."""
    if "%" in out:
        return False
    host.watch(out)
    try:
        return any(name.endswith((".parquet", ".journal")) for name in os.listdir(out))
    except OSError:
        return False


def _default(config: Config, variables: Mapping[str, str]) -> Wish:
    settings = config.score
    try:
        period = period_of(settings.interval)
    except ValueError:
        raise ConfigError(f"[score] interval = '{settings.interval}' is no interval from 100ms to 1h") from None
    out = settings.out
    if not out and (place := _place(config, variables)) is not None:
        out = results.score_out(place)
    return Wish(period=period, out=out or DEFAULT_OUT, collector=settings.collector)


def _place(config: Config, variables: Mapping[str, str]) -> str | None:
    return results.place_of(variables, config.results.directory, own_name(), config.events.cluster)


def end(job: int, step: int, config: Config, screen: Callable[[Any, Any], str]) -> int:
    """Show the score of a step on stderr; return the exit status, which says whether there was one.

    What reads the data set is a process of its own: srun is held up for `end_wait_s` at most, whatever the size of the
    step and the state of its file system; with `html`, which is asked for, for _HTML_S more.
    """
    wish, settings = None, config.score
    try:
        wish = from_json(os.fsencode(os.environ.get(VARIABLE, "")))
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        run = Run(job, step, int(restarts) if restarts.isdecimal() else 0, os.getppid())
        directory = Path(wish.directory(run.job, run.step, run.restarts))
        wait = settings.end_wait_s + (_HTML_S if wish.html else 0)
        place = _place(config, os.environ)
        name = run.name if place is not None and results.is_kept(directory, place) else str(directory)

        def work(out: TextIO) -> int:
            status = _show(directory, name, run, wish, settings, screen, out)
            if place is not None and name == run.name:
                removed = results.make_room(place, config.results.most, config.results.most_mb)
                print(f"piolet: {printable(removed)}\n" if removed else "", end="", file=out)
            return status

        status = apart(work, _BEGUN + wait)
        if status is not None:
            return status
        later = f"piolet score report {name}" if wish.html else f"piolet score show {name}"
        print(
            f"piolet: the score of step {run.name} is not ready after {wait} s; it comes with: {later}", file=sys.stderr
        )
    except PioletError as error:
        print(f"piolet: warning: no score: {printable(error.render())}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001 - whatever becomes of the scoring, the step has ended well
        print(f"piolet: warning: no score: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


@dataclass(frozen=True)
class Run:
    """Which run of which step has ended; `srun` is the process that waits for it."""

    job: int
    step: int
    restarts: int
    srun: int

    @property
    def name(self) -> str:
        """Its name."""
        return identity.run_name(self.job, self.step, self.restarts)


def apart(work: Callable[[TextIO], int], deadline: float) -> int | None:
    """Do the work in a process of its own, and copy what it writes to stderr; return its status.

    None: the deadline (of time.monotonic()) has come. Then the process is ended, and not waited for: it may hang in a
    file system. What it has written by then is shown.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "w", encoding="utf-8", errors="replace") as out:
                status = work(out)
        finally:
            os._exit(status)
    os.close(write)
    ended = False
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while not ended and (left := deadline - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                piece = pipe.read(1 << 16)
                ended = not piece
                sys.stderr.buffer.write(piece or b"")
                sys.stderr.buffer.flush()
    if not ended:
        os.kill(child, signal.SIGKILL)
        return None
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _show(
    directory: Path, name: str, run: Run, wish: Wish, settings: ScoreConfig, screen: Callable[[Any, Any], str],
    out: TextIO,
) -> int:  # fmt: skip
    """Write the screen, and make the page if it is wished; return the exit status. `name` is what the data set is
    called by in commands.
    """
    try:
        from piolet.samples.dataset import open_dataset
        from piolet.samples.settings import weights_of
        from piolet.score import peaks
        from piolet.score.saturation import Weights
        from piolet.score.summary import summarise

        late = _wait(directory, _BEGUN + max(_LEAST_S, settings.end_wait_s - _READ_S))
        data = open_dataset(directory)
        if data.run != run.name:
            raise ScoreError(f"{directory} holds the data set of another step, {data.run}")
        if data.end / 1e9 < origin.began(run.srun) - _APART_S:
            # Numbers of jobs begin anew when a site's database does.
            raise ScoreError(f"{directory} holds the data set of an earlier step {run.name}")
        origin.leave(directory, run.srun)
        table = peaks.from_file(Path(settings.calibration)) if settings.calibration else None
        summary = summarise(data, table, wish.html, Weights(**weights_of(settings.weights)))
        print(screen(summary, sys.stderr), end="", file=out)
        if late:
            print(f"piolet: warning: the last samples of {late} did not come in time", file=out)
        if wish.html:
            from piolet.cli.files import write
            from piolet.score.report import html

            out.flush()
            write(directory / "report.html", html.render(summary).encode())
            print(f"piolet: the report: {directory / 'report.html'}", file=out)
        else:
            print(f"piolet: the samples: {directory}; a report: piolet score report {name}", file=out)
    except PioletError as error:
        print(f"piolet: warning: no score: {printable(error.render())}", file=out)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever becomes of the scoring, the step has ended well
        print(f"piolet: warning: no score: {type(error).__name__}: {error}", file=out)
        return 1
    return 0


def _wait(directory: Path, deadline: float) -> str:
    """Wait until every node's samples are complete; return which are not. A node without any is not waited for long."""
    from piolet.samples.dataset import HOST_PARQUET, PARQUET, nodes_of
    from piolet.samples.journal import SUFFIX

    wanted = 0
    ended: set[str] = set()
    first = min(deadline, time.monotonic() + _FIRST_S)
    while True:
        begun = list(directory.glob(f"*{SUFFIX}"))
        ended |= {path.stem for path in begun if path.stem not in ended and _ended(path)}
        journals = sorted(path.stem for path in begun if path.stem not in ended)
        finished = [path for path in directory.glob(f"*{PARQUET}") if not path.name.endswith(HOST_PARQUET)]
        there = finished or begun
        if there and not journals:
            one = there[0]
            try:
                wanted = wanted or nodes_of(one)
            except ScoreError:
                if os.path.lexists(one):
                    raise
                continue  # a journal that has become a file meanwhile
            if len({path.stem for path in (*begun, *finished)}) >= wanted or time.monotonic() > first:
                return ""
        elif time.monotonic() > (deadline if there else first):
            if not there:
                raise ScoreError(
                    f"no node wrote samples to {directory}",
                    "may you write there, and do all nodes see it? The log of pioletd.service says more",
                )
            return ", ".join(journals)
        time.sleep(_POLL_S)


def _ended(journal: Path) -> bool:
    """Return whether a journal has its end mark, or is a Parquet file by now.

    The sums of all samples stand behind the end mark; those of a small journal are as soon made of its samples.
    """
    from piolet.samples.journal import last_summary

    try:
        # Others may write there, too: what is no file must not hold this up.
        descriptor = files.open_regular(str(journal))
    except (FileNotFoundError, files.NotRegularError):
        return True
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - _TAIL))
        return (size < _SMALL and b'"event":"end"' in file.read()) or bool(last_summary(str(journal)))
