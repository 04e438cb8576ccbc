"""What the runner does inside an image: one order from standard input, lines to standard output. Python 3.8."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time

from piolet.api import Context
from piolet.errors import PioletError
from piolet.vet import plan, runner

_ORDER_MAX = 2 * plan.LIMIT_BYTES


def main() -> int:
    """Carry out one order and return the exit status."""
    if sys.version_info < (3, 8):  # noqa: UP036 - an image's Python may be of any age
        return _fail("the image's Python is older than 3.8")
    data = sys.stdin.buffer.read(_ORDER_MAX + 1)
    try:
        if len(data) > _ORDER_MAX:
            return _fail("the order is too long")
        order = json.loads(data.decode("utf-8"))
        what = plan.from_json(json.dumps(order["plan"]).encode())
        given = order["context"]
        gpus = given.get("gpus")
        context = Context(
            node=given["node"],
            deadline=time.monotonic() + what.budget_s,
            nodes=tuple(given.get("nodes", ())),
            uid=os.getuid(),
            gpus=None if gpus is None else tuple(gpus),
            environ=dict(os.environ),
            scratch=tempfile.gettempdir(),
            facts=given.get("facts", {}),
        )
    except PioletError as error:
        return _fail(error.message)
    except (ValueError, KeyError, TypeError, AttributeError):
        return _fail("the order is malformed")
    # Evals that print must not print between the lines.
    lines = os.dup(1)
    os.dup2(2, 1)
    runner.run_plan(what, plan.ENVIRONMENT, context, functools.partial(runner.write_all, lines))
    return 0


def _fail(text: str) -> int:
    os.write(2, f"piolet: error: {text}\n".encode())
    return 1
