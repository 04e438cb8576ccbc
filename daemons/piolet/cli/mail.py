"""`piolet mail JOB`: sends the owner of a job what is known of it. Slurm's controller calls it at a job's end.

As EpilogSlurmctld it has SLURM_JOB_ID; where the controller must not wait, a line `piolet mail & exit 0` in a script
does that. Accounting is told of a job's end a moment later, so it waits for that, WAITED_S at most.
"""

from __future__ import annotations

import argparse
import os
import time

from piolet.base.errors import UsageError
from piolet.cli import job
from piolet.site import config

WAITED_S = 30.0
_PAUSE_S = 1.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mail`."""
    text = "send the owner of a job what is known of it, for Slurm's controller"
    parser = subparsers.add_parser("mail", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("job", metavar="JOB", nargs="?", help="the job (default: SLURM_JOB_ID)")
    parser.add_argument("--show", action="store_true", help="print the mail, and send none")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Send it, where the site's rule says so."""
    from piolet.observe import mail

    word = args.job or os.environ.get("SLURM_JOB_ID", "")
    if not word:
        raise UsageError("there is no job", "piolet mail 112, or as EpilogSlurmctld")
    deadline = time.monotonic() + WAITED_S
    while True:
        found = job.views(word, settings)
        if isinstance(found, list):
            raise UsageError(f"{word} are several jobs", f"name one of them: {found[0].shown}")
        if found.now.state not in ("RUNNING", "COMPLETING") or args.show or time.monotonic() > deadline:
            break
        time.sleep(_PAUSE_S)
    why_none = mail.why_none(found, settings.mail)
    if why_none and not args.show:
        print(f"no mail: {why_none}")
        return 0
    made = mail.message(found, settings.mail)
    if args.show:
        print(made.as_string())
        return 0
    mail.send(made, settings.mail.server)
    print(f"sent to {made['To']}")
    return 0
