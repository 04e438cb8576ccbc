"""The site's configuration, `piolet.toml`.

The frozen dataclasses below are the only definition: the loader, the commented sample
(`piolet config sample`) and the documentation derive from them. An unknown key, a value of the wrong
type and one that cannot be meant are errors with file, line and the nearest known name.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from piolet.base.errors import ConfigError, EnvironmentFileError
from piolet.base.nearest import nearest
from piolet.environment import mounts

DEFAULT_PATH = Path("/etc/piolet/piolet.toml")
_SOCKET_MOST = 107  # bytes of the path of a socket, says the kernel
_NUMBER_MOST = 2**31 - 1


Check = Callable[[str], None]


def _setting(default: Any, text: str, check: Check | None = None, *, least: int = 0) -> Any:
    """Define a setting. `check` raises ConfigError for a string, each one of an array; `least` is for numbers."""
    values = tuple(default) if isinstance(default, list) else default
    return field(default=values, metadata={"help": text, "check": check, "least": least})


def _found(*places: str, usual: str) -> str:
    """Return the first of these programs that is there; the usual one where none is."""
    return next((place for place in places if os.access(place, os.X_OK)), usual)


def _absolute(text: str) -> None:
    if not text.startswith("/") or "\0" in text:
        raise ConfigError(f"'{text}' is not an absolute path")


def _socket(text: str) -> None:
    _absolute(text)
    if len(text.encode()) > _SOCKET_MOST:
        raise ConfigError(f"'{text}' is too long for a socket: {_SOCKET_MOST} bytes at most")


def _absolute_or_empty(text: str) -> None:
    if text:
        _absolute(text)


def _mount(text: str) -> None:
    try:
        mount = mounts.parse(text)
    except EnvironmentFileError as error:
        raise ConfigError(error.message, error.hint) from None
    if mount.kind != "bind" or not mount.source.startswith("/"):
        raise ConfigError(f"'{text}' does not begin with an absolute path")


def _interval(text: str) -> None:
    from piolet.samples.request import period_of  # who sets nothing loads nothing

    try:
        period_of(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no interval from 100ms to 1h", "write for example: 100ms, 1s, 5min") from None


def _registry(text: str) -> None:
    if not text or "/" in text or any(c.isspace() for c in text):
        raise ConfigError(f"'{text}' is not a registry", "write host or host:port, as registry.example:5000")


def _size(text: str) -> None:
    from piolet.base.sizes import bytes_of  # who sets nothing loads nothing

    if text and bytes_of(text) is None:
        raise ConfigError(f"'{text}' is not a size", "write a number and a unit: 500GiB, 2TiB, 800GB")


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:9417" or "[::1]:9417".

    Raises ConfigError: it is none, or not of the loopback interface.
    """
    import ipaddress  # who sets nothing loads nothing

    host, _, port = text.rpartition(":")
    try:
        number = int(port)
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        number, loopback = 0, False
    if not loopback or not 0 < number < 65536:
        raise ConfigError(
            f"'{text}' is not an address and a port of the loopback interface", "write for example: 127.0.0.1:9417"
        )
    return host.strip("[]"), number


def _address_or_empty(text: str) -> None:
    if text:
        address_of(text)


def _not_empty(text: str) -> None:
    if not text:
        raise ConfigError("it is empty")


@dataclass(frozen=True)
class EnvironmentConfig:
    """`[environment]`: how definition files are read and what a container gets."""

    edf_path: tuple[str, ...] = _setting(
        ["/etc/edf"], "Directories in which a bare name is looked up, after the user's own EDF_PATH.", _absolute
    )
    unknown_keys: Literal["error", "warn"] = _setting(
        "error", "What an unknown key in a definition file is: 'error' or 'warn'."
    )
    mount_home: bool = _setting(True, "Mount the user's home directory into every container.")
    mounts: tuple[str, ...] = _setting(
        [],
        "What every container has besides, where the node has it: PATH or SRC:DST[:FLAGS]; as TaskProlog's script.",
        _mount,
    )
    runtime: Literal["native", "crun"] = _setting(
        "native", "What builds the container: 'native' (system calls of pioletd's own worker) or 'crun'."
    )
    crun: str = _setting("/usr/bin/crun", "The OCI runtime that runtime = 'crun' calls.", _absolute)
    entry_program: str = _setting(
        "/usr/libexec/piolet/piolet-entry",
        "Stands in front of a user's command when an image's entrypoint is to run.",
        _absolute,
    )
    squashfuse: str = _setting(
        _found("/usr/libexec/piolet/squashfuse", usual="/usr/bin/squashfuse"),
        "Mounts the .sqsh files that users bring, as the user; that of the package piolet-squashfuse if it is there.",
        _absolute,
    )


@dataclass(frozen=True)
class ImagesConfig:
    """`[images]`: the site's image store and the service that writes it."""

    store: str = _setting(
        "/var/lib/piolet/images",
        "The site's store, on a file system that all nodes share: a node whose store lacks an image fails the step.",
        _absolute,
    )
    socket: str = _setting("/run/piolet-images/images.sock", "Where the image service listens.", _socket)
    account: str = _setting(
        "piolet-images", "The account that the image service runs as and that owns the store.", _not_empty
    )
    skopeo: str = _setting("/usr/bin/skopeo", "Copies images out of registries.", _absolute)
    mksquashfs: str = _setting(
        _found("/usr/bin/mksquashfs", "/usr/sbin/mksquashfs", usual="/usr/bin/mksquashfs"),
        "Writes SquashFS files (4.5 or newer); the default is in /usr/sbin where only that is there, as on RHEL.",
        _absolute,
    )
    compression: Literal["zstd", "lz4", "gzip", "xz", "lzo"] = _setting(
        "zstd", "What mksquashfs compresses with: zstd, lz4, gzip, xz or lzo."
    )
    pull_timeout_s: int = _setting(
        3600, "A pull that takes longer than this many seconds, waiting included, is given up.", least=1
    )
    lease_stale_s: int = _setting(
        30, "An importer that has not renewed its lease for this many seconds is taken to be dead.", least=1
    )
    insecure_registries: tuple[str, ...] = _setting(
        [], "Registries (host:port) that are spoken to without TLS; loopback ones always may be.", _registry
    )
    processors: int = _setting(
        0, "Processors that one conversion may use, at a low priority; 0: half of the machine's, at most 8."
    )
    memory: int = _setting(
        6144,
        "MiB of memory that each of the two processes of a conversion may take: about 1 GiB per million files.",
        least=256,
    )
    unpack_ratio: int = _setting(
        50,
        "An image that unpacks to more than so many times its layers' size, and to more than 1 GiB, is refused.",
        least=1,
    )
    conversion_rate: int = _setting(
        2, "MiB a second: a conversion that is slower, once two minutes have passed, is given up.", least=1
    )
    quota: str = _setting(
        "500GiB", "What a user's own first pulls and imports may take in the site's store; empty: any amount.", _size
    )
    quota_images: int = _setting(1000, "How many images those may be; 0: any number.")
    public_idle_days: int = _setting(
        90, "A public image that nobody has asked for in so many days is removed; 0: never."
    )
    verify: Literal["first", "always", "never"] = _setting(
        "first", "When a node compares an image with the SHA-256 of its conversion: first mount, always, or never."
    )


@dataclass(frozen=True)
class NodeConfig:
    """`[node]`: pioletd on a compute node."""

    socket: str = _setting("/run/piolet/node.sock", "Where the plugins in slurmstepd find pioletd.", _socket)
    vet_socket: str = _setting("/run/piolet/vet.sock", "Where the tasks of vet steps find pioletd.", _socket)
    vet_program: str = _setting("/usr/libexec/piolet/piolet-vet-task", "What a vet step runs on every node.", _absolute)
    score_socket: str = _setting("/run/piolet/score.sock", "Where the plugins in slurmstepd find the sampler.", _socket)
    state: str = _setting("/run/piolet", "What is known of running steps, for a restarted daemon.", _absolute)
    account: str = _setting("piolet", "The account of the unprivileged server.", _not_empty)
    build_timeout_s: int = _setting(
        20, "A container that is not built after this many seconds fails its step.", least=1
    )
    verbose: bool = _setting(False, "Log every step, and where its start spent the time (as pioletd --verbose).")
    image_idle_s: int = _setting(600, "An image that no step has used for this many seconds is unmounted.")
    image_mounts: Literal["auto", "idmap", "devicemapper", "fuse"] = _setting(
        "auto", "How users get images of the store: auto (what the kernel can do), idmap, devicemapper or fuse."
    )
    views_per_image: int = _setting(
        8, "With devicemapper, so many users have a view of one image; squashfuse serves more.", least=1
    )


@dataclass(frozen=True)
class VetConfig:
    """`[vet]`: how nodes are checked."""

    evals: tuple[str, ...] = _setting(
        ["/etc/piolet/evals"], "Directories with the site's own evals, one file with one class each.", _absolute
    )
    spool: str = _setting("/var/spool/piolet/vet", "Where pioletd keeps verdicts for a central service.", _absolute)
    requirements_timeout_s: int = _setting(
        120, "An eval whose requirements are not installed after so long is inconclusive.", least=1
    )


@dataclass(frozen=True)
class ScoreConfig:
    """`[score]`: counters and the score."""

    interval: str = _setting("100ms", "Between two samples, where --score does not say: 100ms to 1h.", _interval)
    collector: Literal["auto", "dcgm", "gpm", "nvml", "host"] = _setting(
        "auto", "The source of GPU counters: auto, dcgm, gpm, nvml or host."
    )
    out: str = _setting(
        "piolet-score-%j.%s%r",
        "Where data sets go: %j is the job, %s the step, %r -r1 after a requeue; relative to the step's directory.",
        _not_empty,
    )
    calibration: str = _setting(
        "", "Peaks of the site's GPUs, a file of `piolet score calibrate`; empty: the data sheets'.", _absolute_or_empty
    )
    end_wait_s: int = _setting(10, "The screen at a step's end waits so many seconds for the nodes' last samples.")
    prometheus: str = _setting(
        "",
        "Where pioletd serves the metrics of running steps, for example 127.0.0.1:9417; empty: nowhere.",
        _address_or_empty,
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
    key or a value that is none for its key.
    """
    named = path is not None
    path = path or DEFAULT_PATH
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except FileNotFoundError:
        if not named:
            return Config()
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # tomllib lets some of Python's own limits out as they are
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return from_dict(data, str(path), text)


def from_dict(data: dict[str, Any], origin: str, text: str = "") -> Config:
    """Return the configuration in `data`, which was parsed from `text`; `origin` is named in errors."""
    sections: dict[str, Any] = {}
    known = {f.name: f for f in dataclasses.fields(Config)}
    for name, table in data.items():
        place = _Place(origin, text, name)
        if name not in known:
            raise ConfigError(f"{place}: unknown section [{name}]", _known(name, known))
        if not isinstance(table, dict):
            raise ConfigError(f"{place}: [{name}] must be a table")
        sections[name] = _section(known[name].default_factory, table, place)
    return Config(**sections)


@dataclass(frozen=True)
class _Place:
    """Where a section or one of its settings stands, as errors name it."""

    origin: str
    text: str
    section: str
    key: str | None = None

    def __str__(self) -> str:
        from piolet.base.positions import scan  # only errors need it

        text = self.text.replace("\r\n", "\n")
        keys = scan(text).keys
        span = keys.get((self.section, self.key or "")) or keys.get((self.section,))
        return self.origin if span is None else f"{self.origin}:{text.count(chr(10), 0, span[0]) + 1}"


def _section(kind: Any, table: dict[str, Any], place: _Place) -> Any:
    types = get_type_hints(kind)
    settings = {setting.name: setting.metadata for setting in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        here = dataclasses.replace(place, key=key)
        if key not in types:
            raise ConfigError(f"{here}: [{place.section}]: unknown key '{key}'", _known(key, types))
        try:
            values[key] = _typed(value, types[key], settings[key]["least"])
        except ConfigError as error:
            raise ConfigError(f"{here}: [{place.section}] {key} {error.message}") from None
        check: Check | None = settings[key]["check"]
        try:
            for text in value if isinstance(value, list) else [value]:
                if check is not None:
                    check(text)
        except ConfigError as error:
            raise ConfigError(f"{here}: [{place.section}] {key}: {error.message}", error.hint) from None
    return kind(**values)


def _typed(value: Any, wanted: Any, least: int) -> Any:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"must be one of {', '.join(map(repr, get_args(wanted)))}, not {value!r}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError("must be an array of strings")
        return tuple(value)
    if type(value) is not wanted:
        names = {bool: "true or false", int: "a whole number", str: "a string"}
        raise ConfigError(f"must be {names[wanted]}, not {value!r}")
    if wanted is int and value < least:
        raise ConfigError(f"must be at least {least}, not {value}")
    if wanted is int and value > _NUMBER_MOST:
        raise ConfigError(f"must be at most {_NUMBER_MOST}, not {value}")
    return value


def _known(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"did you mean '{near}'?" if near else f"known here: {', '.join(sorted(known))}"
