"""`piolet central ended`: at the end of a srun that failed, a line of what is known of its nodes, or nothing.

srun waits for it, so it asks for no longer than ASKED_S, and whatever goes wrong is nobody's concern.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

from piolet.base.errors import PioletError
from piolet.cli.main import printable
from piolet.site import config

ASKED_S = 1.6
_PAUSES_S = (0.0, 0.25, 0.4, 0.5)
"""What a node says of a step's end is on its way for a second."""
_NUMBER = re.compile(r"[0-9]{1,10}")


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action, which is srun's own."""
    parser = actions.add_parser("ended", allow_abbrev=False)
    parser.add_argument("--job", type=int, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--status", type=int, required=True)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Ask until it is known how the step failed, and print what its owner is told."""
    from piolet.central.rules import components
    from piolet.cli import centralpeer
    from piolet.steps import identity
    from piolet.transport import statements
    from piolet.transport.asking import Asker

    if not settings.central.url:
        return 0
    deadline = time.monotonic() + ASKED_S
    # The plugin is told of one component of a heterogeneous job. srun has the job as a whole in its environment.
    number = os.environ.get("SLURM_JOB_ID", "")
    job = components.whole(args.job, int(number) if _NUMBER.fullmatch(number) else None)
    target = statements.question("/v1/line", {"job": str(job), "step": identity.word(args.step)})
    for pause in _PAUSES_S:
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            said = Asker(centralpeer.of_user(settings, left)).ask("GET", target).said
        except PioletError:
            return 0
        if said.get("known"):
            if said.get("line"):
                print(printable(f"piolet: {said['line']}"), file=sys.stderr)
            break
    return 0
