"""What one conversion may take: memory, time, and unpacked bytes; and how many the machine bears.

All of it follows the size of what comes in, so that a small archive is small in every respect. Layers of programs and
libraries unpack to some two to ten times their size, and gzip makes at most 1032 bytes of one (zlib's technical
details); what lies between is mostly zeros, with which somebody could fill a disk or keep a place (decision 63).
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from piolet.base.errors import ImageError

UNPACKED_MOST = 512 << 30
UNPACKED_FREE = 1 << 30
"""An image may always unpack to so much, however small its layers are: a base image of zeros is no attack."""
PATIENCE_S = 120
_SLOTS_LEAST, _SLOTS_MOST = 2, 8
_PROCESSORS_MOST = 8
_CHECK_S = 1.0


class TooSlow(ImageError):  # noqa: N818 - named for what is the case
    """The conversion has had the time that its size gives it."""


def unpacked_limit(packed: int, ratio: int) -> int:
    """Return how many bytes an image may unpack to whose layers have `packed` bytes together; holes count."""
    return min(UNPACKED_MOST, max(UNPACKED_FREE, ratio * packed))


def seconds(count: int, rate: int) -> float:
    """Return how long a conversion may take that has `count` bytes to read, at `rate` MiB a second."""
    return PATIENCE_S + count / (rate << 20)


def processors_of(wanted: int) -> int:
    """Return how many processors a conversion uses: `wanted`, or for 0 half of the machine's, at most 8."""
    return wanted or max(1, min(_PROCESSORS_MOST, len(os.sched_getaffinity(0)) // 2))


def conversions_at_once(memory: int) -> int:
    """Return how many conversions this machine bears, each with two busy processes of up to `memory` MiB."""
    cores = len(os.sched_getaffinity(0))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(_SLOTS_LEAST, min(_SLOTS_MOST, cores // 2, machine // 2 // (2 * memory)))


def bound_memory(mebibytes: int) -> None:
    """Let this process, and each that it starts, have so much memory of its own: RLIMIT_DATA.

    Not RLIMIT_AS, which counts what is only reserved as well: a thread's arena in the C library is 64 MiB of that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = mebibytes << 20
    for limit in (soft, hard):
        wanted = wanted if limit == resource.RLIM_INFINITY else min(wanted, limit)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


@contextmanager
def bounded_time(read: Callable[[], int], rate: int) -> Iterator[None]:
    """Raise ImageError in the block when it takes longer than what `read()`, the bytes it has read so far, allows.

    Uses SIGALRM: in the main thread of a process that is ours alone.
    """
    began = time.monotonic()

    def check(_signal: int, _frame: object) -> None:
        spent = time.monotonic() - began
        if spent > seconds(read(), rate):
            signal.setitimer(signal.ITIMER_REAL, 0)  # once: what tidies up is not disturbed
            raise TooSlow(
                f"its conversion was given up after {spent:.0f} s, in which {read() >> 20} MiB of it were read",
                "try again when the machine is less busy; the site can lower conversion_rate in [images]",
            )

    before = signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, _CHECK_S, _CHECK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
