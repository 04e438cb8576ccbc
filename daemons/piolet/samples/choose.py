"""Which collectors a step gets: the best source of GPU figures that is there, and the host's.

Preference: GPM, which begins with Hopper and leaves the unit alone that profilers need; DCGM, which takes it; NVML. A
site or a user may name one ("gpm", "dcgm", "nvml", "host"); then no other is taken in its place. What could not be
taken, and why, becomes a part of the data set.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

from piolet.api import Collector, Target, Unavailable
from piolet.base.errors import ScoreError

# Imported when it is its turn: none of these libraries is loaded for a step that does not need it.
GPU_COLLECTORS = {
    "gpm": "piolet.samples.collectors.gpm:Gpm",
    "dcgm": "piolet.samples.collectors.dcgm:Dcgm",
    "nvml": "piolet.samples.collectors.nvml:Nvml",
}
HOST = "host"
HOST_COLLECTOR = "piolet.samples.collectors.host:HostCollector"
NAMES = ("auto", *GPU_COLLECTORS, HOST)


def choose(
    target: Target,
    wanted: str = "auto",
    around: Callable[[Collector], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[list[Collector], dict[str, str]]:
    """Return the open collectors, GPUs first, and why each of the others was not taken.

    Each is opened within an `around` of its own: a library may not return.
    Raises ScoreError: `wanted` is no collector. That it cannot collect is no error: the reason is in the result.
    """
    if wanted not in NAMES:
        raise ScoreError(f"there is no collector '{wanted}'", f"there are: {', '.join(NAMES)}")
    chosen: list[Collector] = []
    why_not: dict[str, str] = {}
    for name, place in GPU_COLLECTORS.items():
        if wanted not in ("auto", name):
            why_not[name] = f"collector={wanted} was asked for"
        elif chosen:
            why_not[name] = f"{chosen[0].name} was there"
        elif target.gpus == ():
            why_not[name] = "the step has no GPU"
        else:
            collector, reason = opened(place, target, around)
            chosen += [collector] if collector else []
            if reason:
                why_not[name] = reason
    host, reason = opened(HOST_COLLECTOR, target, around)
    if host is None:
        why_not[HOST] = reason
    else:
        chosen.append(host)
    return chosen, why_not


def opened(
    place: str,
    target: Target,
    around: Callable[[Collector], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[Collector | None, str]:
    """Return the collector at "MODULE:CLASS", open; or None, and why it cannot collect."""
    module, _, name = place.partition(":")
    collector: Collector = getattr(importlib.import_module(module), name)()
    try:
        with around(collector):
            collector.open(target)
    except Unavailable as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a collector is a plug-in; scoring goes on without it
        reason = f"it failed: {type(error).__name__}: {error}"
    else:
        return collector, ""
    with contextlib.suppress(Exception), around(collector):
        collector.close()
    return None, reason
