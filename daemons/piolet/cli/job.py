"""`piolet job JOB[.STEP]`: what is known of a job, in one place."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from piolet.base.errors import PioletError, UsageError
from piolet.cli.main import printable
from piolet.site import config

FORMS = "112, 112.0 (a step), 112_1 (of an array), 112+1 (of a heterogeneous job)"
_ASKED_S = 10.0
_STEPS_MOST = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `job`."""
    parser = subparsers.add_parser(
        "job", help="what is known of a job, in one place", description="What is known of a job.", allow_abbrev=False
    )
    parser.add_argument("job", metavar="JOB", help=FORMS)
    parser.add_argument("--json", action="store_true", help="as JSON, by the schema docs/job.schema.json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one offline page of a step of it, and no text")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print it."""
    from piolet.observe import jobtext

    found = views(args.job, settings)
    if args.html and not isinstance(found, list):
        from piolet.cli import observe_page

        observe_page.write(args.html, observe_page.of_job(found, settings))
        print(printable(str(args.html)))
        return 0
    if isinstance(found, list):
        if args.json or args.html:
            raise UsageError(f"{args.job} are several jobs", f"name one of them: {found[0].shown}")
        text = [*jobtext.tasks(found), f"piolet job {found[0].shown} shows one of them"]
    else:
        text = [json.dumps(found.as_dict())] if args.json else jobtext.whole(found)
    print(printable("\n".join(text)))
    return 0


def views(word: str, settings: config.Config, *, why_only: bool = False) -> Any:
    """Return what is known of a job, or the runs that it consists of where `word` names several jobs.

    Raises PioletError: nobody knows it, or it is somebody else's.
    """
    from piolet.observe import known
    from piolet.slurm import onejob

    name = onejob.parse_name(word)
    sources = sources_of(settings)
    runs, missing = known.runs(name, sources)
    shown = list(dict.fromkeys(one.shown for one in runs))
    if len(shown) > 1:
        if name.step:
            raise UsageError(f"{name.of_job} are several jobs", f"name the step of one: {shown[0]}.{name.step}")
        return [[one for one in runs if one.shown == label][-1] for label in shown]
    return known.job(name, runs, missing, sources, time.time(), quick=why_only)


def sources_of(settings: config.Config) -> Any:
    """Return whom to ask: as who types the command."""
    from piolet.observe.known import Sources
    from piolet.system.accounts import is_staff

    uid = os.getuid()
    return Sources(
        os.environ, uid, uid == 0 or is_staff(uid, settings.central.staff), settings.results.directory,
        settings.events.cluster, _central(settings), _steps(settings),
    )  # fmt: skip


def _central(settings: config.Config) -> Any:
    if not settings.central.url:
        return None
    from piolet.cli import centralpeer
    from piolet.transport import statements
    from piolet.transport.asking import Asker

    deadline = time.monotonic() + _ASKED_S

    def ask(node: str, seconds: float) -> dict[str, Any]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise PioletError(f"the central service took longer than {_ASKED_S:g} s")
        target = statements.question("/v1/node", {"name": node, "seconds": f"{seconds:.0f}"})
        return Asker(centralpeer.of_user(settings, left)).ask("GET", target).said

    return ask


def _steps(settings: config.Config) -> Any:
    """Return what fetches what detectors found in a job's steps, as far as the central service shows it."""
    if not settings.central.url:
        return None
    from piolet.cli import centralpeer, stepsasked
    from piolet.transport.asking import Asker

    def fetch(number: int, step: str, target: Path) -> list[Path]:
        asked = Asker(centralpeer.of_user(settings, _ASKED_S))
        said, _ = stepsasked.listed(asked, job=str(number))
        chosen = [one for one in said if not step or one["name"].partition("-")[0] == f"{number}.{step}"][:_STEPS_MOST]
        wanted = ("meta.json", "findings.parquet")
        steps = [stepsasked.named(asked, one["name"]) for one in chosen]
        looked = [one for one in steps if set(wanted) <= set(one["files"])]  # at first there are none
        return [stepsasked.fetch(asked, one, target / str(at), wanted) for at, one in enumerate(looked)]

    return fetch
