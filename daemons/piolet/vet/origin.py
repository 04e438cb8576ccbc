"""Whose code comes to a verdict: Piolet's own, the site's, or a user's.

A vetting is done by processes that are the user, so every verdict is a user's word, and whoever reads it has to know
how much of one. The first two origins say that nothing but root's files was executed in the process, from the zygote to
the verdict. What the user decides all the same: the parameters, the limits and the load of the step, when a process is
stopped or killed. Where one of the conditions is not met, or cannot be told, the code is a user's.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence

from piolet.vet import catalogue
from piolet.vet.runner.plan import HOST, Plan, Task

BUILT_IN, SITE, USER = "built-in", "site", "user"
# The others load libraries that parameters or the environment name, or tell what another node says.
_OPEN = {"cuda_kernel", "gpu_gemm", "gpu_memory_bandwidth", "nccl_bandwidth", "network_pair"}
_OWN = {f"piolet.vet.evals.{name}:{kind}": name for name, kind in catalogue.OWN.items() if name not in _OPEN}
_AT_LEAST = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# What a service manager gives to a service, and to nobody else.
_THE_DAEMONS = re.compile(
    r"NOTIFY_SOCKET|CREDENTIALS_DIRECTORY|INVOCATION_ID|JOURNAL_STREAM|MAINPID|SYSTEMD_.*|LISTEN_.*|WATCHDOG_.*|PYTHON.*"
)


class Origins:
    """The origins of a plan's evals; `directories` are those of the site."""

    def __init__(self, plan: Plan, directories: Sequence[str]) -> None:
        self._directories = [os.path.normpath(one) for one in directories]
        # One class of a user's is as bad as all: it is the same user who could stop, starve or outlast the others.
        alone = all(self.code(task) is not None for task in plan.tasks)
        self._closed = alone and roots_path(sys.path) and len({task.name for task in plan.tasks}) == len(plan.tasks)

    def code(self, task: Task) -> tuple[str, str] | None:
        """Return the origin of the task's class and its name there, or None: it is a user's, or may execute what is."""
        if task.requirements or task.search or task.where != HOST:
            return None
        if task.target in _OWN:
            return BUILT_IN, _OWN[task.target]
        path, _, name = task.target.rpartition(":")
        inside = os.path.dirname(path) in self._directories and path == os.path.normpath(path)
        if inside and path.endswith(".py") and name.isidentifier() and len(task.target) <= 256 and roots_file(path):
            return SITE, task.target
        return None

    def of(self, task: Task, cached: bool = False) -> tuple[str, str | None]:
        """Return the origin of a verdict of the task, and the name of what came to it, where it is not a user's.

        What was kept from an earlier vetting, or is compared with one, comes from a file of the user's.
        """
        code = self.code(task) if self._closed and not cached and task.baseline != "history" else None
        return code if code is not None else (USER, None)


def closed_environment(daemon: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an eval that is root's code, from those that root gave the daemon: none is the user's.

    What such an eval may know of the user's is in Context.environ.
    """
    return {**_AT_LEAST, **{name: value for name, value in daemon.items() if not _THE_DAEMONS.fullmatch(name)}}


def roots_path(path: Sequence[str]) -> bool:
    """Return whether all modules that can be found there are root's."""
    return all(os.path.isabs(one) and (not os.path.exists(one) or _roots(one)) for one in path)


def roots_file(path: str) -> bool:
    """Return whether root, and nobody else, can change the plain file, or put another in its place."""
    try:
        plain = stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
    while plain and _roots(path):
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def _roots(path: str) -> bool:
    try:
        status = os.lstat(path) if os.path.islink(path) else os.stat(path)
    except OSError:
        return False
    # In a sticky directory nobody replaces what is another's.
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
    return status.st_uid == 0 and (not writable or bool(status.st_mode & stat.S_ISVTX))
