"""What lets the later sruns of a job go on without asking again, when all of its nodes were found good.

It is a record like that of an environment (wire.h, 4): the plugin takes it, without starting Python, for the same
request in the same directory, as long as the job, the protocol, the site's evals and the configuration are what they
were, and the vetting is young enough.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from piolet.submission import cache, dependencies, record
from piolet.submission.dependencies import Dependency, Host, Kind

# Which job it is: a number comes again when a job is requeued, or when a cluster is set up anew.
_VARIABLES = (
    "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT", "SLURM_HET_SIZE", "SLURM_CONF",
    "PYTHONPATH", "SLURM_PIOLET_VET_FROM",
)  # fmt: skip
_DEFINITION = b"{}"


@dataclass(frozen=True)
class Basis:
    """What a vetting rests on, as it was before the protocol was read."""

    path: str
    request: str
    directory: str
    dependencies: tuple[Dependency, ...]

    def keep(self, what: str, note: str, at: float, until: float) -> None:
        """Write the record; `note` is what later users see. Both times are seconds of the epoch. Raises nothing."""
        more = [dependencies.until(what, at, until), Dependency(Kind.NOTE, note)]
        packed = record.pack(_DEFINITION, self.request, self.directory, [*self.dependencies, *more])
        if packed is not None:
            cache.store(self.path, packed)


def watch(
    environ: Mapping[str, str], request: str, protocol: str, config: str, default: str, evals: Sequence[str]
) -> Basis | None:
    """Return what a vetting rests on, or None: it cannot be kept.

    `config` is the configuration that was named, '' for the one at `default`; `evals` are the site's directories.
    """
    try:
        host = Host(environ, os.getcwd())
        path = cache.path_of(environ, host.cwd, request, config, os.getuid(), "vet")
    except OSError:
        return None
    for name in _VARIABLES:
        host.variable(name)
    files = [os.path.abspath(protocol), config or default, *evals]
    for directory in evals:
        files += sorted(glob.glob(os.path.join(glob.escape(directory), "*.py")))
    if "SLURM_CONF" in environ:
        files.append(environ["SLURM_CONF"])
    for file in files:
        host.watch(file)
    het = "SLURM_HET_SIZE" in environ
    if path is None or het or not cache.is_settled(host.dependencies, time.time_ns()):
        return None
    return Basis(path, request, host.cwd, host.dependencies)
