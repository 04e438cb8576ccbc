"""`piolet mark`: an application says something of itself, or it is found in what it wrote.

Inside a job `piolet mark loss=0.31` keeps a figure among the user's results. Where an image has no piolet, a program
prints the line `piolet-mark loss=0.31`; `piolet mark --job JOB` finds these lines, and the usual ones, in its output.
"""

from __future__ import annotations

import argparse
import os
import time

from piolet.base.errors import UsageError
from piolet.cli import stepmarks
from piolet.cli.main import printable
from piolet.site import config

_SECONDS = 60.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mark`."""
    text = "say a figure of your application, or find those that it wrote"
    parser = subparsers.add_parser("mark", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("marks", metavar="NAME=VALUE", nargs="*", help="a figure, as loss=0.31; in a job")
    parser.add_argument("--job", metavar="JOB", help="of this job; without marks they are looked for in its output")
    parser.add_argument(
        "--from", dest="places", metavar="PATH", action="append", default=[],
        help="look here: a file of output, TensorBoard's or W&B's, or a directory of the latter two; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--pattern", metavar="RE2", action="append", default=[],
        help="a pattern besides the usual ones, with a named group for each mark: 'lr (?P<lr>[0-9.e-]+)'",
    )  # fmt: skip


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Keep what is said, or look for it."""
    from piolet.observe import results
    from piolet.system.accounts import own_name

    if args.marks and (args.places or args.pattern or args.job):
        raise UsageError("marks are said in a job, or looked for with --job and --from", "give one of the two")
    place = results.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
    if place is None:
        raise UsageError("there is no place for results: neither HOME nor XDG_STATE_HOME is set")
    if args.marks:
        return _say(args.marks, place)
    return _look(args, settings, place)


def _say(words: list[str], place: str) -> int:
    from piolet.observe import marks, results

    environ = os.environ
    job = environ.get("SLURM_JOB_ID", "")
    if not job.isdecimal():
        raise UsageError("this is no job", "marks are said by what runs in one")
    said = [marks.parse(word) for word in words]
    step, task, node = (environ.get(name, "") for name in ("SLURM_STEP_ID", "SLURM_PROCID", "SLURMD_NODENAME"))
    now, where = time.time(), results.marks_place(place, int(job))
    marks.add(where, node, [marks.Said(*one, now, marks.COMMAND, node, step, task if step else "") for one in said])
    return 0


def _look(args: argparse.Namespace, settings: config.Config, place: str) -> int:
    from piolet.cli.job import sources_of
    from piolet.observe import jobtext, known, marks, marks_found, results
    from piolet.slurm import onejob

    word = args.job or os.environ.get("SLURM_JOB_ID", "")
    if not word:
        raise UsageError("there is nothing to do", "piolet mark loss=0.31 in a job, or piolet mark --job=112")
    finder = marks_found.finder(settings.marks.patterns, args.pattern, os.environ)
    runs, _ = known.runs(onejob.parse_name(word), sources_of(settings))
    if len({one.shown for one in runs}) > 1:
        raise UsageError(f"{word} are several jobs", f"name one of them: {runs[0].shown}")
    run = runs[-1]
    places = args.places or ([run.output] if run.output else [])
    if not places:
        raise UsageError(f"where the output of job {run.shown} is, Slurm does not tell", "name it with --from=FILE")
    found = marks_found.look(places, finder, _SECONDS)
    where = results.marks_place(place, run.number)
    for origin, said in found.said.items():
        marks.put(where, origin, said)
    lines = jobtext.marks(marks.summed(one for said in found.said.values() for one in said))
    print(printable("\n".join([*(lines or ["no mark was found"]), *found.left])))
    if told := stepmarks.send(settings, place, run.number):
        print(printable(told))
    return 0
