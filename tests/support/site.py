"""A site: machines that systemd booted, with a stock Slurm of Debian's packages and nothing of Piolet yet.

The first is the login node, on which slurmctld and a registry run as well. `dnf` is there in name: RPM does the
work, and what our packages require of the system was installed by another package manager.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import oci
from tools.cluster.config import cgroup_conf
from tools.cluster.packages import slurm_version
from tools.cluster.registry import COPY
from tools.machines import Machine, booted

USER, UID = "alice", 1500
REGISTRY = "127.0.0.1:5000"
BUSYBOX = Path("/bin/busybox")

DNF = """#!/bin/sh
case $1 in
install) shift; exec rpm -i --nodeps --force-debian "$@" ;;
upgrade) shift; exec rpm -F --nodeps --force-debian "$@" ;;
remove) exec rpm -e --nodeps $(rpm -qa "$2") ;;
esac
exit 64
"""

REGISTRY_YML = f"""version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: /var/lib/docker-registry}}}}
http: {{addr: {REGISTRY}}}
"""

SLURM_CONF = """ClusterName=site
SlurmctldHost=login({login})
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
PluginDir={plugins}
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=5
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Site:
    """Machines that run: a login node and compute nodes. `shared` is the file system that all of them see."""

    login: Machine
    nodes: tuple[Machine, ...]
    shared: Path

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.login, *self.nodes)

    def follow(self, blocks: Sequence[Block], *machines: Machine) -> str:
        """Run a guide's commands on these machines, as root or, where it says so, the user; return what they print."""
        said = ""
        for machine in machines:
            for block in blocks:
                user = USER if block.where == "user" else "root"
                said += machine.good("bash", "-e", "-c", block.commands, user=user)
        return said

    def push(self, name: str, layers: Sequence[Sequence[oci.Entry]]) -> None:
        """Put an image into the site's registry."""
        place = self.shared / "image"
        oci.build(place, layers, settings={"Env": ["PATH=/bin"]})
        self.login.good("skopeo", *COPY, "dir:/shared/image", f"docker://{REGISTRY}/{name}")
        shutil.rmtree(place)


@dataclass(frozen=True)
class Block:
    """Commands of a guide, and where it says that they are to be typed."""

    where: str
    commands: str


def read_guide(path: Path) -> list[Block]:
    """Return the commands of a guide, in order: its blocks that begin with ```sh PLACE."""
    found = re.findall(r"^```sh (\w+)\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(where, commands) for where, commands in found]


@contextlib.contextmanager
def site(cache: Path, place: Path, nodes: int = 2) -> Iterator[Site]:
    """Boot a site and start Slurm and the registry on it; end all of it afterwards."""
    names = ["login", *(f"node{number}" for number in range(1, nodes + 1))]
    with booted(names, cache, place) as machines:
        made = Site(machines[0], tuple(machines[1:]), place / "shared")
        _configure(made)
        made.login.good("systemctl", "start", "slurmctld", "docker-registry")
        for node in made.nodes:
            node.good("systemctl", "start", "slurmd")
        ready = f"until sinfo -h -o %t | grep -qx idle && [ $(sinfo -h -t idle -o %D) = {nodes} ]; do sleep 0.1; done"
        made.login.good("timeout", "30", "sh", "-c", ready)
        yield made


def _configure(made: Site) -> None:
    home = made.shared / "home" / USER
    home.mkdir(parents=True)
    os.chown(home, UID, UID)
    lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=8 State=UNKNOWN" for node in made.nodes]
    # Where Debian has Slurm's plugins, and where RPMs of Slurm have them and ours go.
    plugins = os.path.dirname(made.login.good("find", "/usr/lib", "-name", "auth_munge.so").strip())
    slurm_conf = SLURM_CONF.format(
        login=made.login.address, nodes="\n".join(lines), plugins=f"{plugins}:/usr/lib64/slurm"
    )
    hosts = "127.0.0.1 localhost\n" + "".join(f"{one.address} {one.name}\n" for one in made.machines)
    files = {
        "/etc/slurm/slurm.conf": slurm_conf,
        "/etc/slurm/cgroup.conf": cgroup_conf(slurm_version()),
        "/etc/hosts": hosts,
        "/etc/docker/registry/config.yml": REGISTRY_YML,
    }
    for machine in made.machines:
        for path, text in files.items():
            machine.write(path, text)
        machine.write("/usr/local/bin/dnf", DNF, 0o755)
        machine.good("useradd", "--uid", str(UID), "--home-dir", f"/shared/home/{USER}", "--no-create-home", USER)
        machine.good("install", "-d", "/usr/lib64/slurm")
        machine.good("install", "-d", "-o", "slurm", "/var/lib/slurm/slurmctld", "/var/lib/slurm/slurmd")


def tiny(*more: oci.Entry) -> list[oci.Entry]:
    """Return a layer with a static busybox and its commands."""
    names = ("sh", "cat", "sleep", "hostname", "echo", "setsid", "true", "ls", "id")
    own = [oci.folder("bin"), oci.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)]
    return [*own, *(oci.symlink(f"bin/{name}", "busybox") for name in names), *more]
