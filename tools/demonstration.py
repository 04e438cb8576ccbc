"""What the demos share: a cluster of their own, so that one that somebody is using stays as it is, which goes again.

Whatever happens, Ctrl-C included, it is taken down.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

from tools.cluster import lifecycle
from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY, Layout, layout_for
from tools.cluster.report import Report


def on_a_cluster(name: str, request: lifecycle.Request, play: Callable[[Layout], None]) -> int:
    """Have a cluster in build/NAME played on; return an exit status. What goes wrong is printed."""
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _play(layout_for(REPOSITORY / "build" / name), request, play)
    except ClusterError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"the demo gave up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _play(layout: Layout, request: lifecycle.Request, play: Callable[[Layout], None]) -> None:
    report = Report()
    lifecycle.down(layout, Report(io.StringIO()))
    try:
        lifecycle.up(layout, request, report, hints=False)
        play(layout)
    finally:
        # The tidying up is not to be interrupted: that is what it is for.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if lifecycle.is_left_behind(layout):
            lifecycle.down(layout, report)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
