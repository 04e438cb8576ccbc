"""What hooks and devices add to the containers of this node, for the server's event loop.

The node is looked at in a thread: when pioletd starts, when a step asks for what was not looked for, and again after
a while, beside the step that asks then. The hooks themselves run in the loop, each for its time (hooks/evaluate.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from piolet.api import Step
from piolet.container import entries
from piolet.container.entries import Additions
from piolet.environment.definition import Definition
from piolet.hooks import facts
from piolet.hooks.evaluate import Hooks, Wish
from piolet.hooks.facts import Facts
from piolet.hooks.settings import HooksConfig
from piolet.transport import wire

_log = logging.getLogger("pioletd")

_AGAIN_S = 60.0
"""After so long what is known of the node is looked up again: a driver may have been updated."""


class Furnisher:
    """Hooks, and what is known of the node. `clock` is in seconds."""

    def __init__(self, config: HooksConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._hooks = Hooks(config)
        self._thread = ThreadPoolExecutor(1, "hooks")
        self._facts = Facts()
        self._looked = 0.0
        self._looks, self._links = self._hooks.patterns()
        self._future: Future[Facts] | None = None
        self._start_look()

    def wish(self, definition: Definition) -> Wish | None:
        """Return what a definition asks for; None: nothing."""
        return self._hooks.wish(definition)

    def look_up(self, wish: Wish) -> Future[Facts] | None:
        """Return the look at the node that has to end before `additions`; None: what is known is enough."""
        looks, links = wish.looks, wish.links
        self._looks |= looks
        self._links |= links
        self._take()
        if self._facts.cover(looks, links):
            if self._future is None and self._clock() > self._looked + _AGAIN_S:
                self._start_look()
            return None
        if self._future is not None and self._pending.cover(looks, links):
            return self._future
        return self._start_look()

    def additions(self, wish: Wish, start: wire.Start, user: str, home: str) -> Additions:
        """Return what the container of a step gets besides. Raises PioletError."""
        self._take()
        step = Step(start.job, start.step, start.uid, start.gid, user, home)
        found = self._hooks.extras(wish, self._facts, step)
        who = {"HOME": home, "USER": user} if user else {}
        return entries.collect(found, wish.definition.set_env, wish.definition.unset_env, who)

    def _start_look(self) -> Future[Facts]:
        self._pending = Facts(looks=frozenset(self._looks | self._links), links=frozenset(self._links))
        self._future = self._thread.submit(facts.look, set(self._looks), set(self._links), self._config)
        return self._future

    def _take(self) -> None:
        """Take over what the last look has found. Raises what it has raised."""
        if self._future is not None and self._future.done():
            done, self._future = self._future, None
            self._facts, self._looked = done.result(), self._clock()
