"""`piolet observe page`: one offline HTML page of a step's data; `piolet job --html` makes the same."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from piolet.base import files
from piolet.base.errors import ObserveError, PioletError
from piolet.cli import stepmarks, stepsasked
from piolet.cli.main import printable
from piolet.site.config import Config

TEXT = "write one HTML page of a step: findings, lines over time, events, heat maps; it works offline"


def add_parser(actions: Any) -> None:
    """Add `page` to `piolet observe`."""
    parser = actions.add_parser("page", help=TEXT, description=f"{TEXT[0].upper()}{TEXT[1:]}.", allow_abbrev=False)
    parser.add_argument(
        "step",
        metavar="STEP",
        help="a directory with data of a step, one of --score, or JOB[.STEP] of the central service",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default: JOB.STEP.html here)")


def run(args: argparse.Namespace, settings: Config) -> int:
    """Write the page, and say where it is."""
    name, page = made(args.step, settings)
    target = args.out or Path(f"{name}.html")
    write(target, page)
    print(printable(str(target)))
    return 0


def made(word: str, settings: Config, job: Any = None) -> tuple[str, bytes]:
    """Return the name of a step and its page; with what else is known of its job, if that is given.

    word    a directory, or JOB[.STEP], whose data are fetched from the central service meanwhile

    Raises PioletError: there are no data, or they may not be read, or are damaged.
    """
    if "/" in word or Path(word).is_dir():
        return _made(Path(word), settings, job)
    asked = stepsasked.service(settings)
    step = stepsasked.named(asked, word)
    with tempfile.TemporaryDirectory(prefix="piolet-page-") as room:
        directory = stepsasked.fetch(asked, step, Path(room, "step"))
        anew = stepmarks.of_fetched(directory, asked, step["name"], settings)
        where = f"the central service has them: piolet observe fetch {step['name']}"
        return _made(directory, settings, job, anew=anew, where=where)


def of_job(job: Any, settings: Config) -> bytes:
    """Return the page of a step of a job: what the central service keeps of it, else what `--score` collected.

    Raises PioletError: there is neither.
    """
    name = f"{job.number}.{job.step}" if job.step else str(job.number)
    hint = "srun --score collects them, and a central service keeps those of every step"
    why: PioletError = ObserveError(f"there are no data of job {name}", hint)
    if settings.central.url:
        try:
            return made(name, settings, job)[1]
        except PioletError as error:
            why = error
    for score in job.scores:
        if not job.step or score.step.partition("-")[0] == name:
            return made(score.directory, settings, job)[1]
    raise why


def _made(directory: Path, settings: Config, job: Any, *, anew: bool = False, where: str = "") -> tuple[str, bytes]:
    """Return a step's name and its page.

    anew    who looked for findings had not all of its data
    where   where its data are, if not in the directory
    """
    from piolet.observe import bounded, finding, happened, writing
    from piolet.observe.page import html

    step = bounded.opened(directory)
    if job is not None:
        # Data that the service keeps have them already.
        known = {"events": happened.table(job.events), "marks": _marks(job, settings)}
        step = step.with_tables({name: table for name, table in known.items() if not len(step.table(name))})
    found = None
    if anew or not (len(step.table("findings")) or len(step.table("judged"))):  # nobody looked yet
        found = writing.conformed("findings", finding.rows(bounded.find(directory)))
    return step.name, html.render(step, job, found, where)


def _marks(job: Any, settings: Config) -> Any:
    """Return the marks that this user keeps of their job."""
    from piolet.observe import known, marks, results
    from piolet.system.accounts import own_name

    is_own = job.uid == os.getuid()
    place = results.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
    return marks.table(known.own_marks(place, job) if is_own else ())


def write(target: Path, page: bytes) -> None:
    """Write a page, whole or not at all, for its owner to read. Raises ObserveError."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        files.write_whole(str(target), page, str(aside), mode=0o600)
    except OSError as error:
        raise ObserveError(f"cannot write {target}: {error.strerror}") from None
