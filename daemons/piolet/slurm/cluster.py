"""The cluster as Slurm's controller has it: its name, what it hides from users, and where its nodes are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask

_NODE = re.compile(r"NodeName=(\S+)")
_ADDRESS = re.compile(r"\sNodeAddr=(\S+)")


@dataclass(frozen=True)
class Cluster:
    """What `scontrol show config` says.

    name     ClusterName
    private  the words of PrivateData
    """

    name: str
    private: frozenset[str]


def cluster(scontrol: str = "scontrol") -> Cluster:
    """Return what the controller says of its cluster. Raises SlurmError."""
    found = dict(re.findall(r"^(ClusterName|PrivateData)\s*=\s*(\S+)", _ask(scontrol, "config"), re.MULTILINE))
    if "ClusterName" not in found:
        raise SlurmError(f"{scontrol} does not tell the name of the cluster", "set [central] cluster")
    private = found.get("PrivateData", "none")
    return Cluster(found["ClusterName"], frozenset(private.split(",")) - {"none"})


def addresses(scontrol: str = "scontrol") -> dict[str, str]:
    """Return NodeAddr of every node: an address, or a name that has one. Raises SlurmError."""
    found = {}
    # With --all, as others do not see the nodes of hidden partitions, nor those that are powered down in the cloud.
    for line in _ask(scontrol, "node", "--oneliner", "--all").splitlines():
        name, address = _NODE.match(line), _ADDRESS.search(line)
        if name is not None:
            # A node that has not registered yet shows none; its name is what slurmctld would ask for.
            found[name[1]] = address[1] if address and address[1] != "(null)" else name[1]
    return found


def _ask(scontrol: str, *what: str) -> str:
    well, out, said = ask([scontrol, "show", *what], f"its {what[0]}")
    if not well:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"{scontrol} show {what[0]} failed: {why[0]}")
    return out
