"""Words of other tools that users write in a definition file, and what we call the same."""

from __future__ import annotations

from piolet.base.nearest import nearest

_MOUNTS = "here it is 'mounts', an array of strings: mounts = [\"SRC:DST\"]"
_WORKDIR = "here it is 'workdir'"
_COMMAND = "the command stands behind srun's options, not in the file"
_READ_ONLY = "here it is 'writable', the other way round: writable = false"
_NETWORK = "a container has the network of its node: leave it out"
_USER = "a container runs as you: leave it out"
_BASES = "here it is 'base_environment'"
# Of Docker and Compose, of Podman's quadlets, pyxis and enroot, apptainer, and of Kubernetes.
FOREIGN = {
    **dict.fromkeys(("volumes", "volume", "mount", "binds", "bind", "container_mounts", "container-mounts"), _MOUNTS),
    **dict.fromkeys(("working_dir", "workingdir", "work_dir", "cwd", "pwd", "chdir", "container_workdir"), _WORKDIR),
    **dict.fromkeys(("command", "cmd", "run", "exec", "args"), _COMMAND),
    **dict.fromkeys(("read_only", "readonly", "read-only", "container_readonly"), _READ_ONLY),
    **dict.fromkeys(("ports", "network", "networks", "network_mode", "expose", "hostname"), _NETWORK),
    **dict.fromkeys(("user", "uid", "privileged", "cap_add"), _USER),
    **dict.fromkeys(("extends", "include", "inherit", "base", "from"), _BASES),
    **dict.fromkeys(("container_image", "container-image", "container", "from_image"), "here it is 'image'"),
    **dict.fromkeys(("environment", "envs", "variables", "env_vars"), "here it is the table [env]"),
    **dict.fromkeys(("env_files", "envfile", "environment_file", "env-file"), "here it is 'env_file'"),
    **dict.fromkeys(("container_save", "container-save"), "here it is 'save'"),
    **dict.fromkeys(("prologue", "prolog", "setup", "init", "pre", "commands"), "here it is the table [startup]"),
    "labels": "here they are the table [annotations]",
    "gpus": "the step's GPUs are srun's: --gpus",
    "container_remap_root": "here it is 'remap_root', true or false",
    "mount_home": "here it is 'home', true or false",
    "container_mount_home": "here it is 'home', true or false",
}
_FLAGS = {"r": "ro", "readonly": "ro", "read-only": "ro", "w": "rw", "write": "rw", "rwx": "rw", "readwrite": "rw"}
_NOTHING = ("z", "Z", "cached", "delegated", "consistent", "U", "nocopy")


def of_key(key: str, known: tuple[str, ...]) -> str | None:
    """Return a hint for an unknown key: what another tool calls so, or the one that is spelt like it."""
    foreign = FOREIGN.get(key.lower())
    if foreign is not None:
        return foreign
    near = nearest(key, known)
    return f"did you mean '{near}'?" if near else None


def of_flag(flag: str, known: tuple[str, ...]) -> str | None:
    """Return a hint for an unknown flag of a mount."""
    if flag in _FLAGS:
        return f"here it is '{_FLAGS[flag]}'"
    if flag in _NOTHING:
        return "other engines need it, this one does not: leave it out"
    near = nearest(flag, known)
    return f"did you mean '{near}'?" if near else None
