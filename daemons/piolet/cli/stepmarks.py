"""The marks of a user's job and the data of its steps: sent to the central service, and joined with what was fetched.

What the user's own files say is joined with data that the user fetched, by the user's own process: marks are there
whether they were sent or not. Others see those that were sent (piolet.central.marks).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from piolet.base.errors import ObserveError, PioletError
from piolet.cli import stepsasked
from piolet.site.config import Config

_SEND_S = 20.0


def send(settings: Config, place: str, job: int) -> str:
    """Send all marks of a job, and return in words of which data they are; '' where nobody takes any."""
    from piolet.cli import centralpeer
    from piolet.observe import marks
    from piolet.transport.asking import Asker

    if not settings.central.url:
        return ""
    body, left_out = marks.packed(marks.of_job(place, job))
    try:
        said = Asker(centralpeer.of_user(settings, _SEND_S)).ask("POST", f"/v1/marks?job={job}", body).said
    except PioletError as error:
        if getattr(error, "status", 0) == 404:
            return ""
        return f"they are not with the data of the job's steps: {error.message}"
    left = f", the last {marks.SENT_MOST} of them" if left_out else ""
    return f"joined with the data of {', '.join(said['steps'])}{left}"


def join(directory: Path, steps: Iterable[str], settings: Config) -> bool:
    """Join one's own marks with a step's data that were fetched; return whether there are more than were there.

    steps   names of the job's steps: "112.0", "112.batch", "112.0-r1"
    """
    from piolet.observe import joining, marks, reading, results, writing
    from piolet.system.accounts import own_name

    step = reading.open_step(directory)
    job = str(step.meta["job"])
    place = results.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
    if step.meta.get("uid") != os.getuid() or place is None or not job.isdecimal():
        return False
    said = marks.of_job(place, int(job))
    if not said:
        return False
    at_home = joining.home(_parts(name) for name in steps)
    own = joining.of_step(said, step.meta["step"], at_home, step.start / 1e9, step.end / 1e9)
    if len(own) <= len(step.table("marks", ["name"])):
        return False
    writing.write_table(directory, "marks", joining.table(own, step.nodes))
    return True


def of_fetched(directory: Path, asked: stepsasked.Service, name: str, settings: Config) -> bool:
    """Do what `join` does, for a step that was just fetched from the service."""
    steps, _ = stepsasked.listed(asked, job=name.partition(".")[0])
    try:
        return join(directory, {one["name"] for one in steps}, settings)
    except OSError as error:
        raise ObserveError(f"cannot read your marks: {error.strerror}") from None


def _parts(name: str) -> tuple[str, int]:
    step, _, run = name.partition(".")[2].partition("-r")
    return step, int(run) if run.isdecimal() else 0
