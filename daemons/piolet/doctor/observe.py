"""The figures of every step: whether this node records them, and whether it can find steps at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

from piolet.doctor.findings import BAD, OK, SKIPPED, WARN, Finding, Machine, ask
from piolet.events import parts
from piolet.observe.choosing import classes
from piolet.observe.found import Finder
from piolet.observe.settings import is_on

_TICKS = 6


def steps_recorded(machine: Machine) -> Iterator[Finding]:
    """Whether figures of all steps are recorded here, and if not, why."""
    if not machine.here("pioletd"):
        return
    own = machine.config.observe
    if not is_on(own.steps, machine.config.central.url):
        why = "it is off" if own.steps == "off" else "no central service would take them ([central] url)"
        text = f"this node records no figures of steps: {why}"
        hint = "" if own.steps == "off" else 'steps = "on" in [observe] of piolet.toml records them'
        yield Finding("steps recorded", OK, text, hint)
        return
    scontrol = shutil.which("scontrol", path=machine.path)
    tracking = ask(machine, scontrol, "show", "config") if scontrol is not None else None
    if tracking is not None and "proctrack/cgroup" not in tracking.stdout and "ProctrackType" in tracking.stdout:
        text = "no step is found: Slurm gives steps no control groups here"
        yield Finding("steps recorded", WARN, text, "set ProctrackType=proctrack/cgroup in slurm.conf")
        return
    try:
        last = [os.lstat(os.path.join(own.journal, one.name)).st_mtime for one in parts.parts(own.journal)]
    except PermissionError:
        yield Finding("steps recorded", SKIPPED, f"only root can see whether figures are written in {own.journal}")
        return
    except OSError as error:
        hint = "systemctl restart pioletd.service makes the directory"
        yield Finding("steps recorded", BAD, f"no figures are written in {own.journal}: {error.strerror}", hint)
        return
    if not last:
        hint = "see the log of pioletd.service, and whether the disk is full or hung"
        yield Finding("steps recorded", BAD, f"nothing was ever written in {own.journal}", hint)
        return
    silent = time.time() - max(last)
    if silent > _TICKS * own.interval_s and Finder().look():
        hint = "see the log of pioletd.service, and whether the disk is full or hung"
        text = f"steps run here, and for {silent:.0f} s none of their figures were written in {own.journal}"
        yield Finding("steps recorded", WARN, text, hint)
        return
    there = len(classes(own.without))
    yield Finding("steps recorded", OK, f"figures of steps are written in {own.journal}, of up to {there} sources")
