"""The files that a cluster's programs read: slurm.conf, plugstack.conf, piolet.toml, hosts, env.sh, `as`.

Pure functions return texts; `write` puts them in place.
"""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import accounts, gpus, installed
from tools.cluster.layout import Layout, node_names
from tools.cluster.processes import FIXED_PATH
from tools.cluster.state import write_atomically

CPUS_PER_NODE = 16
MEMORY_PER_NODE_MIB = 2048
CONTROLLER = "controller"
DEMO_REPOSITORY = "demo/python-numpy"
DEMO_TAG = "1.0"


@dataclass(frozen=True)
class Settings:
    """What the texts depend on.

    address        where everything listens
    clients_stay   Slurm commands on this machine can listen on `address` too (see network.own_name_address)
    cgroups        the version of control groups that confine steps, or 0: none do
    private_tmp    jobs have a /tmp and a /dev/shm of their own, by Slurm
    accounting     a slurmdbd keeps what becomes of jobs and nodes
    central        Piolet's central service takes what nodes say
    first_job      the number of the first job
    """

    layout: Layout
    nodes: int
    piolet: bool
    address: str
    clients_stay: bool
    ports: Mapping[str, int]
    slurm: tuple[int, int]
    gpus: int = 0
    cgroups: int = 0
    private_tmp: bool = False
    accounting: bool = False
    central: bool = False
    first_job: int = 1

    @property
    def registry(self) -> str:
        return f"{self.address}:{self.ports['registry']}"

    @property
    def demo_image(self) -> str:
        return f"{self.registry}/{DEMO_REPOSITORY}:{DEMO_TAG}"

    @property
    def user_conf(self) -> Path:
        return self.layout.slurm_conf if self.clients_stay else self.layout.client_conf


def slurm_conf(s: Settings, stay: bool = True) -> str:
    """Return slurm.conf; `stay` keeps everything on loopback, also what listens for a moment only."""
    layout = s.layout
    parameters = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if stay else ""
    lines = [
        "# Written by tools/cluster; the next start writes it anew.",
        "ClusterName=piolet",
        f"FirstJobId={s.first_job}",
        f"SlurmctldHost={CONTROLLER}({s.address})",
        f"SlurmctldPort={s.ports['slurmctld']}",
        "SlurmUser=slurm",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={layout.munge_socket}",
        parameters,
        f"StateSaveLocation={layout.slurm_state}",
        f"SlurmdSpoolDir={layout.spool}/%n",
        f"TmpFS={layout.tmp}/%n",
        f"SlurmctldPidFile={layout.run}/slurmctld/pid",
        f"SlurmdPidFile={layout.spool}/%n.pid",
        f"SlurmctldLogFile={layout.log}/slurmctld.log",
        f"SlurmdLogFile={layout.log}/slurmd-%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "SlurmdSyslogDebug=quiet",
        "SlurmctldSyslogDebug=quiet",
        f"ProctrackType=proctrack/{'cgroup' if s.cgroups else 'linuxproc'}",
        f"TaskPlugin=task/{'cgroup' if s.cgroups else 'none'}",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        # Several CPUs are claimed for each that there is: these nodes share one small machine.
        "SlurmdParameters=config_overrides",
        # Root here may lack the right to raise limits, and a limit that cannot be set fails the task.
        "PropagateResourceLimits=NONE",
        "ReturnToService=2",
        # A batch job waits up to 3 s before it is looked at unless told otherwise.
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1",
        "CompleteWait=0",
        "KillWait=5",
        "MessageTimeout=60",
        "TCPTimeout=10",
        "SlurmdTimeout=300",
        "UnkillableStepTimeout=60",
        # Everybody is one hop away: a tree of forwarders gains nothing on one machine.
        "TreeWidth=65533",
    ]
    if s.piolet:
        lines.append(f"PlugStackConfig={layout.etc}/plugstack.conf")
    if s.private_tmp:
        lines += ["PrologFlags=Contain", private_tmp(s.slurm)[0]]
    if s.gpus:
        lines.append("GresTypes=gpu")
    if s.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            f"AccountingStorageHost={s.address}",
            f"AccountingStoragePort={s.ports['slurmdbd']}",
            f"AccountingStoragePass={layout.munge_socket}",
        ]
    gres = f" Gres=gpu:{s.gpus}" if s.gpus else ""
    memory = f" RealMemory={MEMORY_PER_NODE_MIB}" if s.cgroups else ""
    lines += [
        f"NodeName={name} NodeAddr={s.address} Port={s.ports[name]} CPUs={CPUS_PER_NODE}{memory}{gres} State=UNKNOWN"
        for name in node_names(s.nodes)
    ]
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "".join(f"{line}\n" for line in lines if line)


def cgroup_conf(slurm: tuple[int, int], cgroups: int = 0) -> str:
    """Return cgroup.conf: steps are confined by control groups of version `cgroups`, or not at all with 0.

    With 0 Slurm is kept away from control groups as far as its version allows:
    slurmd loads a plugin even where nothing uses one, and the one for version 2 refuses to start on a
    machine with both; the one for version 1 does nothing until it is asked.
    """
    if cgroups:
        lines = [
            "# Written by tools/cluster.",
            f"CgroupPlugin=cgroup/v{cgroups}",
            "CgroupMountpoint=/sys/fs/cgroup",
            "ConstrainCores=yes",
            "ConstrainDevices=yes",
            "ConstrainRAMSpace=yes",
            *(["IgnoreSystemd=yes"] if cgroups == 2 else []),
        ]
        return "\n".join(lines) + "\n"
    plugin = "disabled" if slurm >= (24, 5) else "cgroup/v1"
    return f"# Written by tools/cluster.\nCgroupPlugin={plugin}\n"


def private_tmp(slurm: tuple[int, int]) -> tuple[str, str, str]:
    """Return what gives jobs a /tmp and a /dev/shm of their own: a line of slurm.conf; a file's name, and its text.

    They are below /run of the job's node, which no other node has.
    """
    if slurm >= (26, 5):
        text = "# Written by tools/cluster.\ndefaults:\n  auto_base_path: true\n  base_path: /run/slurm-private\n"
        return "NamespaceType=namespace/linux", "namespace.yaml", text
    text = "# Written by tools/cluster.\nAutoBasePath=true\nBasePath=/run/slurm-private\n"
    return "JobContainerType=job_container/tmpfs", "job_container.conf", text


def plugstack_conf(layout: Layout) -> str:
    return f"include {layout.etc}/plugstack.conf.d/*.conf\n"


def plugstack_piolet(layout: Layout) -> str:
    return (
        f"required {layout.plugin} command={layout.venv_bin}/piolet "
        f"config={layout.piolet_toml} socket=/run/piolet/node.sock entry={layout.entry_program}\n"
    )


def plugstack_vet(layout: Layout) -> str:
    return f"required {layout.vet_plugin} command={layout.venv_bin}/piolet config={layout.piolet_toml}\n"


def plugstack_score(layout: Layout) -> str:
    return (
        f"optional {layout.score_plugin} command={layout.venv_bin}/piolet "
        f"config={layout.piolet_toml} socket=/run/piolet/score.sock\n"
    )


def plugstack_outcomes(layout: Layout) -> str:
    return (
        f"optional {layout.outcomes_plugin} command={layout.venv_bin}/piolet "
        f"config={layout.piolet_toml} socket=/run/piolet/events.sock\n"
    )


def piolet_toml(s: Settings) -> str:
    layout = s.layout
    piolet = layout.venv_bin / "piolet"
    return (
        "# Written by tools/cluster; the next start writes it anew.\n"
        "[environment]\n"
        f"edf_path = [{_toml(layout.edf)}]\n"
        f"mounts = [{_toml(layout.site)}]\n"
        f"entry_program = {_toml(layout.entry_program)}\n\n"
        "[hooks]\n"
        f"directory = {_toml(layout.etc / 'hooks.d')}\n"
        f'cdi = ["/etc/cdi", "/var/run/cdi", {_toml(layout.etc / "cdi")}]\n'
        f'options = ["slurm.conf={layout.etc}", "slurm.also={_also(layout)}", "slurm.piolet={piolet}"]\n\n'
        "[images]\n"
        f"store = {_toml(layout.images)}\n"
        f"socket = {_toml(layout.images_socket)}\n\n"
        "[node]\n"
        'socket = "/run/piolet/node.sock"\n'
        'account = "piolet"\n'
        f"vet_program = {_toml(layout.vet_program)}\n\n"
        '[events]\ncluster = "piolet"\nspool = "/run/piolet/events"\n'
        f"{_central(s) if s.central else ''}\n"
        '[observe]\nsteps = "on"\ninterval_s = 1\njournal = "/run/piolet/observe"\n\n'
        # Jobs count from 1 at each start: results of users in their homes would be those of other jobs.
        f"[results]\ndirectory = {_toml(layout.results / '%u')}\n\n"
        '[vet]\nspool = "/run/piolet/spool"\n'
        # The nodes share their processes with this machine, whose other users have no part in the cluster.
        f"users = [{', '.join(_ids(name) for name in accounts.USERS)}]\n"
    )


def _central(s: Settings) -> str:
    layout, place = s.layout, f"{s.address}:{s.ports['central']}"
    return (
        "heartbeat_s = 5\n\n"
        '[forward]\nstate = "/run/piolet-forward"\nevery_s = 2\nframes_s = 3\n\n'
        f'[central]\nurl = "http://{place}"\nlisten = "{place}"\ncluster = "piolet"\n'
        f"socket = {_toml(layout.run / 'central' / 'central.sock')}\n"
        f'store = "sqlite:///{layout.root}/central/central.sqlite"\n'
        f"munge_socket = {_toml(layout.munge_socket)}\naccounting_s = {2 if s.accounting else 0}\n\n"
        f'[keep]\ndirectory = "{layout.root}/central/steps"\nsettle_s = 5\n'
    )


def _also(layout: Layout) -> str:
    """Return what Slurm's commands need besides in a container: the socket of munged, and our plugins."""
    return ":".join(map(str, (layout.munge, layout.plugins, layout.libexec)))


def _toml(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ids(name: str) -> str:
    uid = pwd.getpwnam(name).pw_uid
    return f'"{uid}-{uid}"'


def hosts(s: Settings, own_name: str, own_hosts: str) -> str:
    """Return /etc/hosts of the nodes: our names first, then what this machine's own file says."""
    names = [CONTROLLER, *node_names(s.nodes), own_name]
    ours = ["127.0.0.1 localhost", *(f"{s.address} {name}" for name in names)]
    return "\n".join(ours) + "\n" + own_hosts


def variables(s: Settings) -> dict[str, str]:
    """Return what env.sh exports, but for PATH."""
    return {
        "SLURM_CONF": str(s.user_conf),
        "REGISTRY": s.registry,
        "DEMO_IMAGE": s.demo_image,
        "CLUSTER_USERS": " ".join(accounts.USERS),
        "PIOLET_CLUSTER_DIR": str(s.layout.root),
        **(gpus.script_variable(s.layout.gpus) if s.gpus else {}),
    }


def env_sh(s: Settings) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables(s).items()]
    lines.append(f'export PATH={shlex.quote(f"{s.layout.bin}:{s.layout.venv_bin}")}:"$PATH"')
    return "# Written by tools/cluster: source it.\n" + "\n".join(lines) + "\n"


def as_script(s: Settings) -> str:
    """Return the script `as`. It execs all the way: signals, terminal and exit status are the command's own."""
    known = "\n".join(f"{name}) home={shlex.quote(_home(name))} ;;" for name in accounts.USERS)
    settings = " ".join(shlex.quote(f"{name}={value}") for name, value in variables(s).items())
    path = shlex.quote(f"{s.layout.bin}:{s.layout.venv_bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    return f"""#!/bin/sh
# as USER COMMAND [ARGUMENT...]: run a command as a user of this cluster, as if they had just logged in.
# Written by tools/cluster.
set -eu
if [ $# -lt 2 ]; then
	echo "usage: $0 USER COMMAND [ARGUMENT...]" >&2
	exit 2
fi
user=$1
shift
case $user in
{known}
*) echo "$0: '$user' is not a user of this cluster; there are: {" ".join(accounts.USERS)}" >&2; exit 2 ;;
esac
me=$(id -un)
if [ "$me" = "$user" ]; then
	set -- "$PWD" "$@"
	become=
elif [ "$me" = root ]; then
	set -- "$PWD" "$@"
	become="setpriv --reuid=$user --regid=$(id -g "$user") --init-groups"
else
	echo "$0: only root can become $user" >&2
	exit 2
fi
# Where the user cannot be in the directory that we are in, they start at home.
exec $become env -i HOME="$home" USER="$user" LOGNAME="$user" SHELL=/bin/bash TERM="${{TERM:-dumb}}" LANG=C.UTF-8 \\
	PATH={path} {settings} \\
	/bin/sh -c 'cd -- "$0" 2>/dev/null || cd; unset OLDPWD; exec "$@"' "$@"
"""


def _home(name: str) -> str:
    return pwd.getpwnam(name).pw_dir


def piolet_wrapper(layout: Layout) -> str:
    command = f"{shlex.quote(str(layout.venv_bin / 'piolet'))} --config {shlex.quote(str(layout.piolet_toml))}"
    return f'#!/bin/sh\n# Written by tools/cluster: `piolet` with its configuration.\nexec {command} "$@"\n'


def registry_yml(s: Settings) -> str:
    return (
        "version: 0.1\n"
        "log: {accesslog: {disabled: false}, level: info}\n"
        "storage:\n"
        f"  filesystem: {{rootdirectory: {_toml(s.layout.registry)}}}\n"
        "  delete: {enabled: true}\n"
        f"http: {{addr: {_toml(Path(s.registry))}}}\n"
    )


def write(s: Settings, own_name: str, own_hosts: str) -> None:
    """Write every file; the directories exist."""
    layout = s.layout
    places = (layout.etc, layout.client_conf.parent, layout.bin, layout.edf, layout.site)
    for directory in (*places, layout.etc / "plugstack.conf.d"):
        directory.mkdir(parents=True, exist_ok=True)
    names = ("piolet.conf", "vet.conf", "score.conf")
    piolet_line, vet_line, score_line = (layout.etc / "plugstack.conf.d" / name for name in names)
    gres = layout.etc / "gres.conf"
    _, name, namespaces = private_tmp(s.slurm)
    stale = (
        layout.client_conf,
        layout.client_conf.with_name("cgroup.conf"),
        piolet_line,
        vet_line,
        score_line,
        layout.outcomes_on,
        gres,
    )
    for path in (*stale, layout.etc / name):
        path.unlink(missing_ok=True)
    if s.gpus:
        write_atomically(gres, gpus.gres_conf(layout.gpus, s.gpus))
    write_atomically(layout.slurm_conf, slurm_conf(s))
    write_atomically(layout.etc / "cgroup.conf", cgroup_conf(s.slurm, s.cgroups))
    if s.private_tmp:
        write_atomically(layout.etc / name, namespaces)
    if not s.clients_stay:
        write_atomically(layout.client_conf, slurm_conf(s, stay=False))
        write_atomically(layout.client_conf.with_name("cgroup.conf"), cgroup_conf(s.slurm, s.cgroups))
    write_atomically(layout.etc / "plugstack.conf", plugstack_conf(layout))
    if s.piolet:
        write_atomically(piolet_line, plugstack_piolet(layout))
        write_atomically(vet_line, plugstack_vet(layout))
        write_atomically(score_line, plugstack_score(layout))
        # Off as for a site: include takes names that end in .conf.
        on, off = layout.outcomes_on, layout.outcomes_off
        write_atomically(on if s.central else off, plugstack_outcomes(layout))
        (off if s.central else on).unlink(missing_ok=True)
    write_atomically(layout.piolet_toml, piolet_toml(s))
    accounts.make_results(layout.results)
    write_atomically(layout.hosts, hosts(s, own_name, own_hosts))
    write_atomically(layout.etc / "registry.yml", registry_yml(s))
    write_atomically(layout.edf / "demo.toml", 'image = "${DEMO_IMAGE}"\n')
    write_atomically(layout.env_sh, env_sh(s))
    write_atomically(layout.as_script, as_script(s), 0o755)
    write_atomically(layout.bin / "piolet", piolet_wrapper(layout), 0o755)
    if layout.installed and s.piolet:
        installed.write_programs(layout.installed, layout.venv_bin)


def daemon_path(layout: Layout) -> str:
    return f"{layout.venv_bin}:{FIXED_PATH}"
