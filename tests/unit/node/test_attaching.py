"""Which container a step enters, as the server finds it."""

from __future__ import annotations

import os
import socket

import pytest
from piolet.base.errors import PioletError
from piolet.container.plan import ENTRY_ATTACHED, ENTRY_PROGRAM
from piolet.environment.definition import Definition
from piolet.images.info import Image
from piolet.node.server import attaching
from piolet.node.server.connection import Connection
from piolet.transport import wire

IMAGE = Image("app:1", "site", "sha256:" + "c" * 64)


def connection(
    key: int, job: int, step: int, definition: Definition, container: str = "", **more: object
) -> Connection:
    start = wire.Start(wire.PLUGIN_ENVIRONMENT, job, step, os.getuid(), os.getgid(), [], b"{}", 1000, "node1")
    made = Connection(key, socket.socket(), os.getpid(), start=start, definition=definition, container=container)
    for name, value in more.items():
        setattr(made, name, value)
    made.channel.close()
    return made


def running(key: int, job: int, step: int, **more: object) -> Connection:
    definition = Definition(request="x.toml", image=IMAGE, set_env={"A": "b"}, entrypoint=("/entry",))
    return connection(key, job, step, definition, f"{job}.{step}", answered=True, workdir="/srv", **more)


def asks(to: str, job: int = 12, **more: object) -> Connection:
    return connection(99, job, 5, Definition(request=f"job:{to}", attach=to, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["12.3", "12"])
def test_the_step_that_is_named(to: str) -> None:
    own = running(1, 12, 3, variables={"HOOK": "yes"}, tasks=True)
    asking = asks(to)
    assert attaching.prepare(asking, [running(2, 13, 3), own, asking]) == "12.3"
    assert asking.definition is not None
    assert (asking.definition.set_env, asking.definition.workdir) == ({"A": "b"}, "/srv")
    assert (asking.variables, asking.tasks) == ({"HOOK": "yes"}, True)


def test_one_that_is_attached_leads_to_its_container() -> None:
    attached = running(2, 12, 4)
    attached.container = "12.3"
    assert attaching.prepare(asks("12.4"), [attached]) == "12.3"
    assert attaching.prepare(asks("12"), [attached, running(1, 12, 3)]) == "12.3", "they are one container"


@pytest.mark.parametrize(
    ("to", "others", "said"),
    [
        ("13.3", [running(1, 13, 3)], "a step of job 12 cannot enter a container of job 13"),
        ("1.3", [running(1, 1, 3)], "a step of job 12 cannot enter a container of job 1"),
        ("12", [running(1, 13, 3)], "no step of job 12 is known to have a container"),
        ("12", [running(1, 12, 3), running(2, 12, 4)], "the steps 12.3, 12.4 of job 12 have containers"),
        ("12.3", [connection(1, 12, 3, Definition("x", image=IMAGE))], "the container of step 12.3 is not ready yet"),
        ("12.3", [connection(1, 12, 3, Definition("x"), answered=True)], "step 12.3 runs on the host"),
        ("12.3", [connection(1, 12, 3, Definition("x", image=IMAGE), answered=True)], "it could not be started"),
    ],
)
def test_what_there_is_not(to: str, others: list[Connection], said: str) -> None:
    with pytest.raises(PioletError, match=said):
        attaching.prepare(asks(to), others)


def test_a_step_of_before_a_restart_is_the_monitors_to_find() -> None:
    """With what travelled, or not at all: a container without its variables is another one."""
    known = asks("12.3", image=IMAGE, chdir="/own")
    assert attaching.prepare(known, []) == "12.3"
    assert known.definition is not None and known.definition.workdir == "/own"
    attaching.check(known.definition, True)
    unknown = Definition(request="job:12.3", attach="12.3")
    with pytest.raises(PioletError, match=r"the variables of step 12\.3 are not known: pioletd was restarted"):
        attaching.check(unknown, True)
    attaching.check(unknown, False)


def test_the_entry_program() -> None:
    plain, root = Definition("x", image=IMAGE), Definition("x", image=IMAGE, remap_root=True)
    entry = Definition("x", image=IMAGE, entrypoint=("/e",))
    assert [attaching.program(one, False) for one in (plain, root, entry)] == ["", ENTRY_PROGRAM, ENTRY_PROGRAM]
    inside = Definition("x", image=IMAGE, remap_root=True, attach="12.0")
    assert attaching.program(inside, False) == ENTRY_ATTACHED
    assert attaching.program(Definition("x", image=IMAGE, attach="12.0"), True) == ENTRY_ATTACHED
