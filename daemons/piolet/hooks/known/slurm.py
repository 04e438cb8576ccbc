"""Slurm's own commands inside a container: srun, sbatch, squeue and the others of the node, whatever the image is.

They run by the node's own dynamic loader with the node's own libraries, since an image may have an older C library, or
another one. That takes two directories of the node, mounted where nothing of the image looks: its programs and its
libraries; and Slurm's plugins, its configuration and the sockets of MUNGE and of slurmd where Slurm looks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

from piolet.api import Account, Asked, Entry, File, Hook, Link, Missing, Mount, Node, Step

_COMMANDS = (
    *("srun", "sbatch", "salloc", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sstat", "sattach", "sbcast"),
    *("sprio", "sshare", "sacctmgr", "sdiag", "strigger", "scrontab"),
)
_PLACE = "/run/piolet/slurm"
_BIN, _CONF = "/usr/bin", "/etc/slurm"
_SOCKETS = ("/run/munge", "/run/slurm")
_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1", "ppc64le": "ld64.so.2"}
_SCRIPT = """#!/bin/sh
exec {loader} --library-path {libraries} {place}/bin/"${{0##*/}}" "$@"
"""
_COMMAND = "/usr/bin/piolet"
# What srun's plugin calls for --environment=X and --score: `piolet --config C env submit --record-fd 3 -- X`.
_STAND_IN = """#!/bin/sh
# Python is not here: a step on the host of this node works it out, and what it writes goes to who asked.
case "$3 $4" in
"env submit" | "score submit") ;;
*)
	echo "piolet: error: the piolet command, which --vet needs, does not run in a container" >&2
	echo "hint: call it, or srun with that option, outside of one" >&2
	exit 1
	;;
esac
case "$8" in
- | -,*) ;;
*) exec </dev/null ;;
esac
unset SLURM_SPANK__SLURM_SPANK_OPTION_piolet_vet_vet SLURM_SPANK__SLURM_SPANK_OPTION_piolet_score_score
exec {bin}/srun -Q --overlap --environment=none -N1 -n1 -w "$SLURMD_NODENAME" --chdir=/ --mpi=none /bin/sh -c '
	cd "$1" 2>/dev/null || {{
		echo "piolet: error: $1 is a directory of the container alone, and an environment is worked out on the host" >&2
		echo "hint: cd to a directory that both have, such as your home, before srun --environment" >&2
		exit 1
	}}
	shift
	exec "$@"
' sh "$PWD" "$0" "$1" "$2" "$3" "$4" --record-fd 1 -- "$8" >&3
"""


class Slurm(Hook):
    """The client of the node, for scripts that start steps or ask for jobs from inside."""

    name = "slurm"
    text = "srun, sbatch, squeue and Slurm's other commands inside: the node's client, configuration and MUNGE socket"
    source = "SchedMD, slurm.conf(5) and auth plugins; ld.so(8), --library-path"
    settings: ClassVar[dict[str, str]] = {
        "bin": f"directory of Slurm's commands ({_BIN})",
        "conf": f"directory of slurm.conf ({_CONF})",
        "user": "SlurmUser of slurm.conf (slurm)",
        "piolet": f"the piolet command that plugstack.conf names ({_COMMAND})",
        "also": "further paths that Slurm needs, separated by colons: where its plugins of others lie",
    }

    @classmethod
    def where(cls, site: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The commands, and what srun is linked with."""
        place = site.get("bin", _BIN)
        return (f"{place}/s*",), (f"{place}/srun",)

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Mount the client, and put one script in the place of each command."""
        place, conf = asked.site.get("bin", _BIN), asked.site.get("conf", _CONF)
        there = set(node.paths(f"{place}/s*"))
        libraries = {library.soname: library.path for library in node.needed.get(f"{place}/srun", ())}
        loader = libraries.get(_LOADERS.get(node.machine, ""))
        if f"{place}/srun" not in there or loader is None:
            hint = "the site sets [hooks] options slurm.bin=DIRECTORY"
            raise Missing(f"there is no {place}/srun on this node", hint)
        folders = list(dict.fromkeys(os.path.dirname(path) for path in libraries.values()))
        slurm = os.path.dirname(next((path for name, path in libraries.items() if name.startswith("libslurm")), ""))
        inside = {folder: f"{_PLACE}/lib{number}" for number, folder in enumerate(folders)}
        # Its commands end at once where they do not find the account that slurm.conf names.
        yield Account(asked.site.get("user", "slurm"))
        yield Mount(place, f"{_PLACE}/bin")
        for folder, path in inside.items():
            # Slurm has the place of its plugins compiled in; they lie beside its library.
            yield Mount(folder, folder if folder == slurm else path)
        for path in (conf, *_SOCKETS, *filter(None, asked.site.get("also", "").split(":"))):
            yield Mount(path, path, optional=path != conf)
        search = ":".join(folder if folder == slurm else path for folder, path in inside.items())
        start = f"{inside[os.path.dirname(loader)]}/{os.path.basename(loader)}"
        script = _SCRIPT.format(loader=start, libraries=search, place=_PLACE)
        yield File(f"{_PLACE}/client", script, executable=True)
        stand_in = _STAND_IN.format(bin=place)
        yield File(asked.site.get("piolet", _COMMAND), stand_in, executable=True)
        for name in _COMMANDS:
            if f"{place}/{name}" in there:
                yield Link(f"{place}/{name}", f"{_PLACE}/client")
