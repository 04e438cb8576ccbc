"""Looks at an installation of Piolet on this machine, and says what is wrong and how to mend it.

Every check is a function that yields findings; `CHECKS` is all of them, in order. A check looks and changes nothing,
is bounded in time, and never raises: what cannot be looked at is a finding, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from piolet.doctor import central, configuration, daemons, events, extras, kernel, observe, signatures, slurm, store
from piolet.doctor.findings import BAD, OK, SKIPPED, WARN, Check, Finding, Machine

__all__ = ["BAD", "CHECKS", "OK", "SKIPPED", "WARN", "Finding", "Machine", "examine"]

CHECKS: tuple[Check, ...] = (
    configuration.configuration, slurm.plugins, kernel.kernel, kernel.image_mounts, kernel.user_namespaces,
    kernel.devices, daemons.programs, daemons.accounts, daemons.daemons, store.store, store.cage,
    signatures.signatures, slurm.process_tracking, slurm.task_prolog, extras.gpus, extras.hooks,
    extras.detectors, events.events, observe.steps_recorded, central.central,
)  # fmt: skip


def examine(machine: Machine) -> Iterator[Finding]:
    """Yield the findings of every check."""
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            yield from check(machine)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            hint = "look again as root" if os.geteuid() else "mend that, and look again"
            yield Finding(name, WARN, f"it could not be looked at: {error.strerror}{where}", hint)
