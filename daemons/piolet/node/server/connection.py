"""What the server knows of a step that is announced to it, for as long as its slurmstepd is connected."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from piolet.environment.definition import Definition
from piolet.hooks.evaluate import Wish
from piolet.transport import wire


@dataclass
class Connection:
    """A connection of a slurmstepd; while START is left in it for the monitor, `pidfd` says that the step has ended.

    `container` is the step whose container its tasks are in, once they may be, and `workdir` where they start.
    """

    key: int
    channel: socket.socket
    pid: int
    pidfd: int = -1
    start: wire.Start | None = None
    definition: Definition | None = None
    wish: Wish | None = None
    began: float = 0.0
    deadline: float = 0.0
    variables: Mapping[str, str] = field(default_factory=dict)
    tasks: bool = False
    look_ups: dict[str, Future[Any]] = field(default_factory=dict)
    asked: bool = False
    answered: bool = False
    failed: bool = False
    container: str = ""
    workdir: str = ""
