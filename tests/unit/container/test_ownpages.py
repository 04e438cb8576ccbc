"""A waiting worker has its pages before there is an order: the kernel's own count of them says so."""

from __future__ import annotations

import os
import resource

from piolet.container import worker
from piolet.container.plan import ContainerPlan, PlannedMount, from_json
from piolet.transport import packets

PLAN = ContainerPlan("p", mounts=tuple(PlannedMount("/a", f"/{number}") for number in range(10))).to_json()
ORDER = packets.encode(worker.WorkerOrder(1, 1, [1], 0, PLAN, worker.Means("", "", "")))


def copied(ahead: bool) -> int:
    """Return how many pages reading an order takes in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if ahead:
                worker._take_pages()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            from_json(packets.decode(worker.WorkerOrder, ORDER).plan)
            os.write(write, b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = int(pipe.read())
    os.waitpid(child, 0)
    return said


def test_an_order_is_read_in_pages_that_are_there() -> None:
    worker.get_ready()
    from_json(packets.decode(worker.WorkerOrder, ORDER).plan)  # what is made once is made
    without, ahead = min(copied(False) for _ in range(3)), min(copied(True) for _ in range(3))
    assert without > 20  # else there would be nothing to gain
    assert ahead < without / 3
