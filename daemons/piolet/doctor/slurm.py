"""Slurm's side: whether it loads the plugins, how it follows processes, whether its task prolog is in containers."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from piolet.doctor.findings import ASK_S, BAD, OK, SKIPPED, WARN, Finding, Machine, ask, look
from piolet.environment import mounts

OPTIONS = {"environment": "piolet_environment.so", "vet": "piolet_vet.so", "score": "piolet_score.so"}


def plugins(machine: Machine) -> Iterator[Finding]:
    """Whether srun has our options; when it has not, Slurm says why."""
    srun = shutil.which("srun", path=machine.path)
    if srun is None:
        yield Finding("plugins", SKIPPED, "there is no srun on this machine")
        return
    try:
        done = ask(machine, srun, "-vv", "--help", user=machine.user)
    except PermissionError:  # not everybody's on this machine
        done = ask(machine, srun, "-vv", "--help")
    if done is None:
        yield Finding("plugins", BAD, f"{srun} --help did not end within {ASK_S:g} s", "look at the network and at DNS")
        return
    text, said = done.stdout, done.stderr
    twice = re.search(r'option "(\w+)" provided by both', said)
    if twice is not None and twice[1] in OPTIONS:
        hint = "two lines of plugstack.conf, or of what it includes, load it: remove one"
        yield Finding("plugins", BAD, f"Slurm loads {OPTIONS[twice[1]]} twice: steps that use it fail", hint)
    told = None
    for option, plugin in OPTIONS.items():
        if re.search(rf"^\s*--{option}[=\[\s]", text, re.MULTILINE):
            yield Finding("plugins", OK, f"srun knows --{option}")
        elif (found := _missing(option, plugin, said.splitlines())) != told:
            yield found  # an srun that does not start is one fault, and not one for each option
            told = found


def _missing(option: str, plugin: str, said: list[str]) -> Finding:
    own = [line for line in said if plugin in line]
    why = next((line for line in own if "ncompatible" in line), None)
    if why is not None:
        built = re.search(r"version \((\S+)\)", why)
        of = f", which was built for Slurm {built[1]}" if built else ""
        hint = "install the piolet-plugins that were built for the Slurm that runs here"
        return Finding("plugins", BAD, f"Slurm refuses {plugin}{of}: --{option} is missing", hint)
    if own:
        hint = "see that the file is there, in Slurm's PluginDir unless plugstack.conf names its directory"
        return Finding("plugins", BAD, f"Slurm cannot load {plugin}: {own[0].rpartition(': ')[2]}", hint)
    errors = [line.partition("error: ")[2] for line in said if "error: " in line]
    unreadable = next((line for line in errors if re.search(r"open .*plugstack.*Permission denied", line)), None)
    if unreadable is not None:
        hint = "chmod 0644 plugstack.conf and what it includes: while users cannot read them, no srun of theirs starts"
        return Finding("plugins", BAD, f"srun does not start: {unreadable.removeprefix('spank: ')}", hint)
    if errors and errors[-1] == "Plug-in initialization failed":
        hint = "Slurm reads no line of plugstack.conf behind that of a required plugin which it cannot load: mend that"
        return Finding("plugins", BAD, f"srun does not start: {errors[-2:][0].removeprefix('spank: ')}", hint)
    if errors and "spank" not in "".join(errors):
        return Finding("plugins", BAD, f"srun does not start: {errors[-1]}", "see slurm.conf, and `srun --version`")
    hint = "plugstack.conf, beside slurm.conf, needs the line: include /etc/slurm/plugstack.conf.d/*.conf"
    return Finding("plugins", BAD, f"no line of plugstack.conf loads {plugin}: --{option} is missing", hint)


def process_tracking(machine: Machine) -> Iterator[Finding]:
    """Whether Slurm follows a job's processes by control groups, which none can leave."""
    scontrol = shutil.which("scontrol", path=machine.path)
    if not machine.here("pioletd") or scontrol is None:
        return  # what is missing is told by the task prolog
    done = ask(machine, scontrol, "show", "config")
    found = re.search(r"^ProctrackType\s*=\s*(\S+)", done.stdout, re.MULTILINE) if done is not None else None
    if found is None:
        return
    if found[1] == "proctrack/cgroup":
        yield Finding("process tracking", OK, "Slurm ends a job by its control group")
        return
    text = (
        f"ProctrackType is {found[1]}: processes that leave their session outlive a job, and what mounts users' own "
        "images has not the job's limits"
    )
    yield Finding("process tracking", WARN, text, "set ProctrackType=proctrack/cgroup and TaskPlugin=task/cgroup")


def task_prolog(machine: Machine) -> Iterator[Finding]:
    """Whether the site's TaskProlog, which Slurm runs in the container, is there; and what else the site mounts."""
    if not machine.here("pioletd"):
        return
    site = []
    for text in machine.config.environment.mounts:
        mount = mounts.parse(text)
        if look(mount.source, os.path.exists):
            site.append(mount)
        else:
            text = f"{mount.source} is not there: containers on this node go without it"
            yield Finding("site mounts", WARN, text, "see mounts in [environment] of piolet.toml")
    scontrol = shutil.which("scontrol", path=machine.path)
    if scontrol is None:
        yield Finding("task prolog", SKIPPED, "there is no scontrol on this machine")
        return
    done = ask(machine, scontrol, "show", "config")
    if done is None or done.returncode:
        yield Finding("task prolog", WARN, "scontrol show config does not work", "see that slurmctld answers")
        return
    found = re.search(r"^TaskProlog\s*=\s*(/.*\S)", done.stdout, re.MULTILINE)
    for path in found[1].split(",") if found else ():
        if any(Path(path).is_relative_to(mount.destination or mount.source) for mount in site):
            yield Finding("task prolog", OK, f"{path} is in every container")
        else:
            text = f"TaskProlog {path} is not in the containers, where Slurm runs it: steps with --environment fail"
            yield Finding("task prolog", BAD, text, f'add "{path}" to mounts in [environment] of piolet.toml')
