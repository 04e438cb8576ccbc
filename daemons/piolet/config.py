"""The site's configuration, `piolet.toml`.

The frozen dataclasses below are the only definition: the loader, the commented sample
(`piolet config sample`) and the documentation derive from them. An unknown key or a value of the
wrong type is an error with the file and the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from piolet.environment import mounts
from piolet.errors import ConfigError, EnvironmentFileError

DEFAULT_PATH = Path("/etc/piolet/piolet.toml")


def _setting(default: Any, text: str) -> Any:
    if isinstance(default, list):
        values = tuple(default)
        return field(default=values, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EnvironmentConfig:
    """`[environment]`: how definition files are read and what a container gets."""

    edf_path: tuple[str, ...] = _setting(
        ["/etc/edf"], "Directories in which a bare name is looked up, after the user's own EDF_PATH."
    )
    unknown_keys: Literal["error", "warn"] = _setting(
        "error", "What an unknown key in a definition file is: 'error' or 'warn'."
    )
    mount_home: bool = _setting(True, "Mount the user's home directory into every container.")
    mounts: tuple[str, ...] = _setting(
        [],
        "What every container has besides, where the node has it: PATH or SRC:DST[:FLAGS]; as TaskProlog's script.",
    )
    runtime: Literal["native", "crun"] = _setting(
        "native", "What builds the container: 'native' (system calls of pioletd's own worker) or 'crun'."
    )
    crun: str = _setting("/usr/bin/crun", "The OCI runtime that runtime = 'crun' calls.")
    entry_program: str = _setting(
        "/usr/libexec/piolet/piolet-entry", "Stands in front of a user's command when an image's entrypoint is to run."
    )
    squashfuse: str = _setting("/usr/bin/squashfuse", "Mounts the .sqsh files that users bring, as the user.")


@dataclass(frozen=True)
class ImagesConfig:
    """`[images]`: the site's image store and the service that writes it."""

    store: str = _setting("/var/lib/piolet/images", "The site's store; on a shared file system, or one per node.")
    socket: str = _setting("/run/piolet-images/images.sock", "Where the image service listens.")
    account: str = _setting("piolet-images", "The account that the image service runs as and that owns the store.")
    skopeo: str = _setting("/usr/bin/skopeo", "Copies images out of registries.")
    mksquashfs: str = _setting("/usr/bin/mksquashfs", "Writes SquashFS files (4.5 or newer).")
    compression: str = _setting("zstd", "What mksquashfs compresses with: zstd, lz4, gzip, xz or lzo.")
    pull_timeout_s: int = _setting(3600, "A pull that takes longer than this many seconds is given up.")
    lease_stale_s: int = _setting(
        30, "An importer that has not renewed its lease for this many seconds is taken to be dead."
    )
    insecure_registries: tuple[str, ...] = _setting(
        [], "Registries (host:port) that are spoken to without TLS; loopback ones always may be."
    )


@dataclass(frozen=True)
class NodeConfig:
    """`[node]`: pioletd on a compute node."""

    socket: str = _setting("/run/piolet/node.sock", "Where the plugins in slurmstepd find pioletd.")
    vet_socket: str = _setting("/run/piolet/vet.sock", "Where the tasks of vet steps find pioletd.")
    vet_program: str = _setting("/usr/libexec/piolet/piolet-vet-task", "What a vet step runs on every node.")
    score_socket: str = _setting("/run/piolet/score.sock", "Where the plugins in slurmstepd find the sampler.")
    state: str = _setting("/run/piolet", "What is known of running steps, for a restarted daemon.")
    account: str = _setting("piolet", "The account of the unprivileged server.")
    build_timeout_s: int = _setting(20, "A container that is not built after this many seconds fails its step.")
    verbose: bool = _setting(False, "Log every step, and where its start spent the time (as pioletd --verbose).")
    image_idle_s: int = _setting(600, "An image that no step has used for this many seconds is unmounted.")


@dataclass(frozen=True)
class VetConfig:
    """`[vet]`: how nodes are checked."""

    evals: tuple[str, ...] = _setting(
        ["/etc/piolet/evals"], "Directories with the site's own evals, one file with one class each."
    )
    spool: str = _setting("/var/spool/piolet/vet", "Where pioletd keeps verdicts for a central service.")
    requirements_timeout_s: int = _setting(
        120, "An eval whose requirements are not installed after so long is inconclusive."
    )


@dataclass(frozen=True)
class ScoreConfig:
    """`[score]`: counters and the score."""

    interval: str = _setting("100ms", "Between two samples, where --score does not say: 100ms to 1h.")
    collector: str = _setting("auto", "The source of GPU counters: auto, dcgm, gpm, nvml or host.")
    out: str = _setting(
        "piolet-score-%j.%s%r",
        "Where data sets go: %j is the job, %s the step, %r -r1 after a requeue; relative to the step's directory.",
    )
    calibration: str = _setting(
        "", "Peaks of the site's GPUs, a file of `piolet score calibrate`; empty: the data sheets'."
    )
    end_wait_s: int = _setting(10, "The screen at a step's end waits so many seconds for the nodes' last samples.")
    prometheus: str = _setting(
        "", "Where pioletd serves the metrics of running steps, for example 127.0.0.1:9417; empty: nowhere."
    )


@dataclass(frozen=True)
class Config:
    """All of `piolet.toml`; every setting has a default, so that an empty file is a valid one."""

    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    vet: VetConfig = field(default_factory=VetConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def load(path: Path | None = None) -> Config:
    """Return the configuration in `path`, or the defaults when the default file is absent.

    Raises ConfigError: the file cannot be read (if it was named), is not TOML, or holds an unknown
    key or a value of the wrong type.
    """
    named = path is not None
    path = path or DEFAULT_PATH
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not named:
            return Config()
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return from_dict(data, str(path))


def from_dict(data: dict[str, Any], origin: str) -> Config:
    """Return the configuration in `data`, a parsed TOML document; `origin` is named in errors."""
    sections: dict[str, Any] = {}
    known = {f.name: f for f in dataclasses.fields(Config)}
    for name, table in data.items():
        if name not in known:
            raise ConfigError(f"{origin}: unknown section [{name}]", _nearest(name, known))
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: [{name}] must be a table")
        sections[name] = _section(known[name].default_factory, table, f"{origin}: [{name}]")
    config = Config(**sections)
    for text in config.environment.mounts:
        try:
            mount = mounts.parse(text)
        except EnvironmentFileError as error:
            raise ConfigError(f"{origin}: [environment] mounts: {error.message}", error.hint) from None
        if mount.kind != "bind" or not mount.source.startswith("/"):
            raise ConfigError(f"{origin}: [environment] mounts: '{text}' does not begin with an absolute path")
    return config


def _section(kind: Any, table: dict[str, Any], where: str) -> Any:
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            raise ConfigError(f"{where}: unknown key '{key}'", _nearest(key, types))
        values[key] = _typed(value, types[key], f"{where} {key}")
    return kind(**values)


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, get_args(wanted)))}, not {value!r}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} must be an array of strings")
        return tuple(value)
    if type(value) is not wanted:
        names = {bool: "true or false", int: "a whole number", str: "a string"}
        raise ConfigError(f"{where} must be {names[wanted]}, not {value!r}")
    if wanted is int and value < 0:
        raise ConfigError(f"{where} must not be negative")
    return value


def _nearest(name: str, known: Any) -> str | None:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
