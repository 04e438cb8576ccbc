"""Hooks at work, in pioletd's server: from a definition, the node and the step to entries of the container's plan.

They run in the server's own process, between two events, so each has so long and no longer: a timer's signal ends one
that loops or sleeps, and a hook that was ended thrice is not asked again until pioletd is restarted. What else a hook
raises fails its step alone, or, where the hook is not required, warns.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar, get_args

from piolet.api import Entry, Hook, Missing, Node, Notice, Refused, Step
from piolet.base.errors import PioletError
from piolet.environment.definition import Definition
from piolet.hooks import nvidia
from piolet.hooks.catalogue import BrokenHookError, Catalogue, Installed
from piolet.hooks.facts import Facts
from piolet.hooks.settings import HooksConfig
from piolet.hooks.trusted import said
from piolet.hooks.wanted import Wanted, asked, read, site_options, with_implied

_log = logging.getLogger("pioletd")

ALLOWED_S = 0.25
"""So long may one hook take. Those of Piolet take some hundredths of a millisecond."""
_LATE_MOST = 3
_ENTRIES_MOST = 4096
_KINDS = get_args(Entry)
ALL_GPUS = f"{nvidia.KIND}=all"


_T = TypeVar("_T")


class TooLongError(BaseException):
    """A hook has had its time; no `except Exception` of the hook's holds it up."""


@dataclass
class Wish:
    """What a definition asks for: its devices and hooks, which are loaded, and what has to be known of the node.

    gpus     the image asks for GPUs, in case that there are some
    failure  why it cannot be had, whatever the node has, and a hint
    """

    definition: Definition
    devices: list[str]
    gpus: bool
    pairs: list[tuple[Wanted, type[Hook]]] = field(default_factory=list)
    notices: list[Entry] = field(default_factory=list)
    looks: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    failure: tuple[str, str | None] | None = None


class Hooks:
    """The hooks of a node."""

    def __init__(self, config: HooksConfig, allowed_s: float = ALLOWED_S) -> None:
        self._config = config
        self._catalogue = Catalogue(config.directory)
        self._allowed_s = allowed_s
        self._late: Counter[tuple[str, int]] = Counter()  # by user: it may be their options
        self._where: dict[type[Hook], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def patterns(self) -> tuple[set[str], set[str]]:
        """Return what all hooks have to know of the node, so that it is known before one is asked for."""
        looks: set[str] = set()
        links: set[str] = set()
        for hook in self._catalogue.installed().values():
            with contextlib.suppress(PioletError):
                self._add(hook, self._load(hook), looks, links)
        return looks, links

    def wish(self, definition: Definition) -> Wish | None:
        """Return what this definition asks for; None: for nothing."""
        installed = self._catalogue.installed()
        found = read(definition.annotations, installed, self._config.always)
        wish = Wish(definition, devices(definition), self._gpus_by_default(definition))
        if not found.wanted and not found.unknown and not wish.devices and not wish.gpus:
            return None
        try:
            for prefix in found.required:
                raise PioletError(f"the hook {prefix} is required and not installed on this node")
            for one in found.wanted:
                self._select(one, installed, wish)
        except PioletError as error:
            wish.failure = error.message, error.hint
        return wish

    def extras(self, wish: Wish, facts: Facts, step: Step) -> list[Entry]:
        """Return what the container of a step gets. Raises PioletError."""
        if wish.failure is not None:
            raise PioletError(*wish.failure)
        names = wish.devices
        if wish.gpus and ALL_GPUS in facts.devices.entries:
            names = list(dict.fromkeys([*names, ALL_GPUS]))
        entries: list[Entry] = [*facts.devices.of(names), *wish.notices]
        for wanted, kind in wish.pairs:
            entries += self._ask(wanted, kind, wish.definition, facts.node, step)
        return entries

    def _gpus_by_default(self, definition: Definition) -> bool:
        return self._config.nvidia == "auto" and nvidia.is_asked_for(definition.set_env)

    def _add(self, hook: Installed, kind: type[Hook], looks: set[str], links: set[str]) -> None:
        more = self._where.get(kind)
        if more is None:
            more = self._limited(hook, lambda: kind.where(site_options(kind, self._config)))
            self._where[kind] = more
        looks.update(more[0])
        links.update(more[1])

    def _load(self, hook: Installed) -> type[Hook]:
        return self._limited(hook, lambda: self._catalogue.load(hook))

    def _select(self, wanted: Wanted, installed: Mapping[str, Installed], wish: Wish) -> None:
        """Load a hook, and those that it switches on with it. Raises BrokenHookError: it is required."""
        loaded: dict[str, type[Hook]] = {}

        def load(hook: Installed) -> type[Hook]:
            if hook.name not in loaded:
                loaded[hook.name] = self._load(hook)
            return loaded[hook.name]

        try:
            for one in with_implied([wanted], load, installed):
                kind = load(one.hook)
                if one.hook.name not in {known.hook.name for known, _ in wish.pairs}:
                    self._add(one.hook, kind, wish.looks, wish.links)
                    wish.pairs.append((one, kind))
        except BrokenHookError as error:
            if wanted.required:
                raise
            wish.notices.append(Notice(f"{error.message}; the hook is left out"))

    def _ask(self, wanted: Wanted, kind: type[Hook], definition: Definition, node: Node, step: Step) -> list[Entry]:
        name = wanted.hook.annotation
        given = asked(wanted, kind, definition.set_env, definition.annotations, self._config)
        try:
            entries = self._limited(wanted.hook, lambda: list(kind().entries(given, node, step)), step.uid)
            wrong = next((entry for entry in entries if not isinstance(entry, _KINDS)), None)
            if wrong is not None or len(entries) > _ENTRIES_MOST:
                raise BrokenHookError(f"the hook {name} returned what is no entry of a plan")
            return entries
        except (Missing, Refused) as error:
            if wanted.required:
                raise PioletError(f"the hook {name} is required: {error}", error.hint or None) from None
            return [Notice(f"the hook {name} is left out: {error}")] if wanted.named else []
        except BrokenHookError as error:
            _log.error("%s", error.message)
            if wanted.required:
                raise
            return [Notice(f"{error.message}; it is left out")]

    def _limited(self, hook: Installed, work: Callable[[], _T], uid: int = -1) -> _T:
        """Let a hook work for its time, and turn whatever it raises into BrokenHookError; Missing passes.

        Those of ours have no timer: they are tested.
        """
        name = hook.name
        if self._late[name, uid] >= _LATE_MOST:
            hint = "an administrator mends it, and restarts pioletd"
            raise BrokenHookError(f"the hook {name} is switched off: it has taken too long {_LATE_MOST} times", hint)
        try:
            return _timed(work, self._allowed_s) if hook.site else work()
        except (Missing, Refused, PioletError):
            raise
        except TooLongError:
            self._late[name, uid] += 1
            raise BrokenHookError(f"the hook {name} took longer than {self._allowed_s:g} s") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a site's hook does
            raise BrokenHookError(f"the hook {name} failed: {type(error).__name__}: {said(error)}") from None


def devices(definition: Definition) -> list[str]:
    """Return the devices of a definition that are names of the Container Device Interface."""
    return [device for device in definition.devices if not device.startswith("/")]


def _timed(work: Callable[[], _T], seconds: float) -> _T:
    """Return what `work` does; TooLongError ends it after so many seconds, and again, in case that it is caught.

    Only the main thread has a timer.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds / 5)
        return _below(work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _below(work: Callable[[], _T]) -> _T:
    return work()


def _ring(_: int, frame: FrameType | None) -> None:
    """End what works below `_below`, and nothing else: the timer may ring while its end is being dealt with."""
    while frame is not None:
        if frame.f_code is _below.__code__:
            raise TooLongError
        frame = frame.f_back
