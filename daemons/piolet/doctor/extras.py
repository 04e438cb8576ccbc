"""Devices, hooks, detectors: whether those of this machine can be used; whether Slurm keeps a step to its GPUs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

from piolet.api import Detector
from piolet.base import texts
from piolet.base.errors import PioletError
from piolet.doctor.findings import BAD, OK, WARN, Finding, Machine, ask
from piolet.hooks import facts
from piolet.hooks.catalogue import Catalogue
from piolet.observe import sitefiles


def gpus(machine: Machine) -> Iterator[Finding]:
    """Whether specifications of devices can be used, and whether steps have their own GPUs only."""
    if not machine.here("pioletd"):
        return
    found = facts.devices(machine.config.hooks)
    for why in found.broken.values():
        yield Finding("gpus", BAD, f"devices are not to be had: {why}", "write the file anew, as root")
    if not found.entries:
        return
    yield Finding("gpus", OK, f"containers can have {texts.counted(len(found.entries), 'device')}")
    scontrol = shutil.which("scontrol", path=machine.path)
    done = ask(machine, scontrol, "show", "config") if scontrol is not None else None
    if done is None or done.returncode:
        return
    constrained = re.search(r"^ConstrainDevices\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    if constrained is None or constrained[1].lower() != "yes":
        text = "Slurm does not keep steps to their devices: every container sees all GPUs of the node"
        hint = "set ConstrainDevices=yes in cgroup.conf, TaskPlugin=task/cgroup and GresTypes=gpu in slurm.conf"
        yield Finding("gpus", WARN, text, hint)


def hooks(machine: Machine) -> Iterator[Finding]:
    """Whether each of the site's hooks can be loaded."""
    catalogue = Catalogue(machine.config.hooks.directory)
    there = catalogue.installed().values()
    for hook in there:
        try:
            catalogue.load(hook)
        except PioletError as error:
            yield Finding("hooks", BAD, error.message, error.hint or "piolet hooks list shows all of them")
    known = {hook.name for hook in there}
    for name in machine.config.hooks.always:
        if name not in known:
            hint = "see always in [hooks] of piolet.toml"
            yield Finding("hooks", BAD, f"there is no hook '{name}' that could be on in every container", hint)


def detectors(machine: Machine) -> Iterator[Finding]:
    """Whether each of the site's detectors can be loaded."""
    directory = machine.config.keep.detectors
    for name in sitefiles.names(directory):
        try:
            sitefiles.load(os.path.join(directory, f"{name}.py"), name, Detector)
        except PioletError as error:
            hint = "piolet observe findings --list shows all of them"
            yield Finding("detectors", BAD, error.message, error.hint or hint)
