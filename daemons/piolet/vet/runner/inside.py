"""What the runner does inside an image: one order, then what the coordinator asks for, to the end. Python 3.8."""

from __future__ import annotations

import json
import os
import sys
import time

from piolet.base.errors import PioletError
from piolet.vet.runner import parts, plan, runner, session, surroundings


def main(data: bytes) -> int:
    """Carry out the order in `data` and return the exit status; further orders come on standard input."""
    try:
        order = json.loads(data.decode("utf-8"))
        what = plan.from_json(json.dumps(order["plan"]).encode())
        token, shared = order["token"].encode("ascii"), str(order["shared"])
    except PioletError as error:
        return _fail(error.message)
    except (ValueError, KeyError, TypeError, AttributeError):
        return _fail("the order is malformed")
    node = surroundings.node_name(os.environ)
    context = surroundings.context_of(what, node, surroundings.nodes(os.environ))
    # Evals that print must not print between the lines, nor read the orders.
    lines, orders, nothing = os.dup(1), os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(2, 1)
    os.dup2(nothing, 0)

    # For what evals import. It comes last: no file there is taken for one of Python's, or of ours.
    sys.path += [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(one)]

    def write(line: bytes) -> None:
        runner.write_all(lines, parts.split(line))

    if not token:
        runner.run_plan(what, plan.ENVIRONMENT, context, write)
        return 0
    place = session.Place(surroundings.own_address(node, context.nodes), token, shared)
    count = len(context.nodes)
    until = time.monotonic() + plan.start_s(count) + what.budget_s + what.meetings_s(count)
    session.serve(what, plan.ENVIRONMENT, context, place, orders, write, until=until)
    return 0


def _fail(text: str) -> int:
    os.write(2, f"piolet: error: {text}\n".encode())
    return 1
