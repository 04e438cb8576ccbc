"""The data of steps at the central service: what takes them, what keeps them, and who may read them, started together.

What keeps them (observe/keeping.py) is a process of its own beside the service, as nice as can be: tables of a day are
made while batches come in. Each may be killed without the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piolet.base.errors import ConfigError
from piolet.central import keeper, stepanswers
from piolet.central.answers import Answers
from piolet.central.frames import Frames
from piolet.central.jobs import Jobs
from piolet.observe.keepsettings import KeepConfig
from piolet.slurm.past import EndedJob

_LOG = logging.getLogger("piolet-central")
_AGAIN_S = 10.0
_END_S = 10.0
_TODAY_S = 86400.0
AskJobs = Callable[[float, float], list[EndedJob]]


class Steps:
    """Takes, keeps and shows data of steps.

    slurm_there   whether Slurm can be asked
    store         the address of the store of events, of this cluster
    """

    def __init__(self, config: KeepConfig, answers: Answers, slurm_there: bool, store: str, cluster: str) -> None:
        self._config = config
        self._config = config
        self._told = json.dumps({"keep": dataclasses.asdict(config), "store": store, "cluster": cluster}).encode()
        self._answers = answers
        self.frames = Frames(Path(config.directory), config.free_mib, time.time)
        self.jobs = Jobs(lambda said: self.frames.call(lambda known: known.set_jobs(dict(said), time.time())).result())
        self._slurm_there = slurm_there
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="keep", daemon=True)

    def start(self) -> None:
        """Begin. Raises ConfigError, ObserveError: the directory cannot be used."""
        refuse_directory(self._config)
        self.frames.start()
        stepanswers.add(self._answers, Path(self._config.directory), self.frames.latest)
        if self._slurm_there:
            self.jobs.start()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self.jobs.stop()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(_END_S)
        self.frames.stop()

    def told(self, ask: AskJobs) -> AskJobs:
        """Return what asks accounting for jobs that ended, and notes what became of those of today."""

        def ask_and_note(since: float, until: float) -> list[EndedJob]:
            found = ask(since, until)
            said = {str(job.job): _of_ended(job) for job in found if time.time() - job.end < _TODAY_S}
            if said:
                self.frames.call(lambda known: known.set_jobs(said, time.time())).result()
            return found

        return ask_and_note

    def _keep(self) -> None:
        """Have a keeper, and another where it has ended."""
        while not self._ended.is_set():
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", keeper.__name__, str(os.getpid())],
                stdin=subprocess.PIPE,
                close_fds=True,
                cwd="/",
            )
            assert self._process.stdin is not None
            with contextlib.suppress(OSError), self._process.stdin as pipe:
                pipe.write(self._told)
            if self._ended.is_set():
                self._process.terminate()
            status = self._process.wait()
            if not self._ended.is_set():
                _LOG.error("what keeps the data of steps has ended with status %d; another one begins", status)
            self._ended.wait(_AGAIN_S)


def _of_ended(job: EndedJob) -> dict[str, Any]:
    """Return what meta.json says of how a job ended."""
    said: dict[str, Any] = {"state": job.state, "exit": {"status": job.status, "signal": job.signal}}
    return said | ({"nodes": list(job.nodes)} if job.nodes else {})


def refuse_directory(config: KeepConfig) -> None:
    """Raise ConfigError if data of steps are to be where others may write."""
    path = Path(config.directory)
    try:
        status = path.stat()
    except OSError:
        return
    if status.st_mode & 0o022:
        raise ConfigError(f"[keep] directory: others may write to {path}", f"chmod go-w {path}")
