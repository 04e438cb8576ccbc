"""The section `[environment]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError, EnvironmentFileError
from piolet.config.schema import absolute, found, not_empty, setting
from piolet.environment import mounts


def _mount(text: str) -> None:
    try:
        mount = mounts.parse(text)
    except EnvironmentFileError as error:
        raise ConfigError(error.message, error.hint) from None
    if mount.kind != "bind" or not mount.source.startswith("/"):
        raise ConfigError(f"'{text}' does not begin with an absolute path")


@dataclass(frozen=True)
class EnvironmentConfig:
    """`[environment]`: how definition files are read and what a container gets."""

    edf_path: tuple[str, ...] = setting(
        ["/etc/edf"], "Directories in which a bare name is looked up, after the user's own EDF_PATH.", absolute
    )
    unknown_keys: Literal["error", "warn"] = setting(
        "error", "What an unknown key in a definition file is: 'error' or 'warn'."
    )
    mount_home: bool = setting(True, "Mount the user's home directory into every container.")
    mounts: tuple[str, ...] = setting(
        [],
        "What every container has besides, where the node has it: PATH or SRC:DST[:FLAGS]; as TaskProlog's script.",
        _mount,
    )
    script: Literal["outside", "inside"] = setting(
        "outside",
        "Where the batch script runs when sbatch is given an environment: 'outside' (on the host; its sruns in the "
        "container) or 'inside'. A definition file may say otherwise.",
    )
    node_local: tuple[str, ...] = setting(
        [],
        "Directories that each node has for itself, such as a local disk: what definitions mount from there is looked "
        "for on the node and not when the job is submitted.",
        absolute,
    )
    stay_outside: tuple[str, ...] = setting(
        [
            *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONHOME", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"),
            *("VIRTUAL_ENV", "BASH_ENV", "ENV"),
        ],
        "Variables of the host that no container gets, as what they point at is not there; [env] may set them.",
        not_empty,
    )
    runtime: Literal["native", "crun"] = setting(
        "native", "What builds the container: 'native' (system calls of pioletd's own worker) or 'crun'."
    )
    crun: str = setting("/usr/bin/crun", "The OCI runtime that runtime = 'crun' calls.", absolute)
    entry_program: str = setting(
        "/usr/libexec/piolet/piolet-entry",
        "Stands in front of a user's command when an image's entrypoint is to run.",
        absolute,
    )
    squashfuse: str = setting(
        found("/usr/libexec/piolet/squashfuse", usual="/usr/bin/squashfuse"),
        "Mounts the .sqsh files that users bring, as the user; that of the package piolet-squashfuse if it is there.",
        absolute,
    )
