"""`piolet top JOB`: what a job does now, in the terminal, until it ends.

GPUs and hosts are those of steps with `--score`, from their data sets, or else what nodes record of every step, from
the central service; the state is Slurm's, events are the central service's. Without a terminal it prints a screen each
time, without colour.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from piolet.base.errors import PioletError, ScoreError, UsageError
from piolet.cli import job, stepsasked
from piolet.cli.main import printable
from piolet.site import config

_EVERY_S = 2.0
_APART_S = 60.0  # of the clocks of this machine and of Slurm
_STATE_S, _EVENTS_S, _KEPT_S = 5.0, 15.0, 10.0
_NARROW, _WIDE = 60, 200


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `top`."""
    text = "what a job does now, until it ends"
    parser = subparsers.add_parser("top", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("job", metavar="JOB", help=job.FORMS)
    parser.add_argument("--interval", metavar="TIME", default="2s", help="between updates (2s)")
    parser.add_argument("--once", action="store_true", help="show it once")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Show it until the job ends."""
    from piolet.base import units

    every = units.seconds_of(args.interval, plain="s")
    if every is None or not 0.2 <= every <= 3600:
        raise UsageError(f"--interval is {args.interval!r}", "a time from 200ms to 1h")
    screen = _Screen(args.job, settings)
    terminal = sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    if terminal and not args.once:
        print("\x1b[?1049h\x1b[?25l", end="")
    text = ""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        while True:
            width, height = shutil.get_terminal_size((100, 24 if terminal else 1000))
            text, over = screen.update(max(_NARROW, min(_WIDE, width)), height, color)
            print(f"\x1b[H\x1b[J{text}" if terminal and not args.once else text, end="", flush=True)
            if over or args.once:
                return 0
            time.sleep(every)
    except KeyboardInterrupt:
        return 0
    finally:
        if terminal and not args.once:
            print("\x1b[?25h\x1b[?1049l" + text, end="", flush=True)


def _interrupt(*_: object) -> None:
    """Have the terminal put right."""
    raise KeyboardInterrupt


class _Screen:
    """Asks each source as often as it may be asked."""

    def __init__(self, word: str, settings: config.Config) -> None:
        from piolet.observe import known
        from piolet.slurm import onejob

        self._name = onejob.parse_name(word)
        self._settings, self._sources = settings, job.sources_of(settings)
        runs, _ = known.runs(self._name, self._sources)
        if len({one.shown for one in runs}) > 1:
            raise UsageError(f"{word} are several jobs", f"name one of them: {runs[-1].shown}")
        self._run = runs[-1]
        mine = self._run.uid == os.getuid() or settings.results.directory
        self._place = self._sources.place(self._run.user) if mine else None
        self._calibration = settings.score.calibration
        self._asked = self._events_asked = time.monotonic()
        self._kept_asked = float("-inf")
        self._kept_said: dict[str, Any] = {}
        self._kept_why = ""
        self._events: list[Any] = []
        self._ask_events()

    def update(self, width: int, height: int, color: bool) -> tuple[str, bool]:
        """Return the screen, and whether the job is over."""
        from piolet.observe import toptext

        if time.monotonic() - self._asked >= _STATE_S:
            self._ask_state()
        if time.monotonic() - self._events_asked >= _EVENTS_S:
            self._ask_events()
        run = self._run
        until = run.end if run.is_over and run.end else time.time()
        ran = None if run.start is None else max(0.0, until - run.start)
        missing, nodes = self._nodes()
        step = f".{self._name.step}" if self._name.step else ""
        title = printable(f"job {run.shown}{step}" + (f" ({run.name})" if run.name else ""))
        events = [_cleaned(one) for one in self._events]
        shown = toptext.Shown(title, run.state, ran, run.limit_s, nodes, events, list(map(printable, missing)))
        return toptext.render(shown, width, height, color), run.is_over

    def _nodes(self) -> tuple[list[str], list[Any]]:
        from piolet.observe import live, results

        where = results.of_job(self._place, results.SCORE, self._run.number)
        where += sorted(Path.cwd().glob(f"piolet-score-{self._run.number}.*"))
        where = [path for path in where if not self._name.step or _step_of(path) == self._name.step]
        began = self._run.start or 0.0  # what is older is of an earlier job of that number
        where = [path for path in where if _changed(path) >= began - _APART_S]
        missing: list[str] = []
        scored: list[Any] = []
        if where:
            latest = max(where, key=_changed)  # of several steps the one that runs
            try:
                scored = live.now(latest, self._peaks())
            except ScoreError as error:
                missing.append(error.message)
        if self._run.start is None or any(not node.ended for node in scored):
            return missing, scored
        told, kept = self._kept()
        return [*missing, *([] if scored and not kept else told)], kept or scored

    def _kept(self) -> tuple[list[str], list[Any]]:
        """Return what nodes told last of a step that nothing samples for its user, and what is to be said of it."""
        from piolet.observe import livekept

        if not self._settings.central.url:
            return ["no step of it is sampled: srun --score does that"], []
        if self._run.is_over:
            return [], []
        if time.monotonic() - self._kept_asked >= _KEPT_S:
            self._kept_asked = time.monotonic()
            try:
                self._kept_said = stepsasked.now(self._settings, str(self._run.number), self._name.step)
                self._kept_why = ""
            except PioletError as error:
                self._kept_why = error.message
        nodes, told = livekept.nodes(self._kept_said, self._peaks())
        if self._kept_why:
            told = [self._kept_why, *told]
        elif not nodes:
            told = ["nothing has come of its nodes yet: they send every 30 s; srun --score samples a step at once"]
        return told, nodes

    def _peaks(self) -> Any:
        from piolet.score import peaks

        return peaks.from_file(Path(self._calibration)) if self._calibration else None

    def _ask_state(self) -> None:
        from piolet.observe import known

        self._asked = time.monotonic()
        try:
            runs, _ = known.runs(self._name, self._sources)
        except PioletError:
            return  # Slurm is busy; what was said before stands
        self._run = runs[-1]

    def _ask_events(self) -> None:
        from piolet.observe import happened, known

        self._events_asked = time.monotonic()
        if self._sources.central is not None and self._run.nodes:
            view = known.bare(self._run, self._name.step)
            self._events = happened.events(view, job.sources_of(self._settings).central, [], time.time())


def _changed(path: Path) -> float:
    try:
        return max([path.stat().st_mtime, *(one.stat().st_mtime for one in os.scandir(path))])
    except OSError:
        return 0.0


def _step_of(path: Path) -> str:
    return path.name.rpartition(".")[2].partition("-")[0]


def _cleaned(event: Any) -> Any:
    import dataclasses

    return dataclasses.replace(
        event, node=printable(event.node), kind=printable(event.kind), text=printable(event.text)
    )
