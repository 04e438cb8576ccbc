"""From a request to a definition: read, merge, expand, check, resolve the image.

Everything is decided here, once, as the user. What it refuses: all that the files' own rules refuse;
mounts, a workdir, an entrypoint or devices without an image; a mount whose source is not there or
not readable; a path that must be absolute and is not; a definition that is longer than its limit.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from piolet.base.errors import EnvironmentFileError, ImageError
from piolet.environment import around, defaults, edf, later, mounts, variables
from piolet.environment.definition import LIMIT_BYTES, Definition, Mount
from piolet.environment.layer import Entry, Layer
from piolet.environment.lookup import nearest_path
from piolet.environment.problems import Problems
from piolet.environment.request import STANDARD_INPUT
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image, ImageInfo
from piolet.images.reference import is_path
from piolet.submission.dependencies import Host, squeeze

Resolver = Callable[[str], ImageInfo]

MOUNTS_LIMIT = 1000
WORKDIR_LIMIT = 4095

_CDI = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*=\S+")
_NEEDS_CONTAINER = "without one the step runs on the host, and only env applies"


@dataclass(frozen=True)
class Rendered:
    """A definition, and what `explain` needs to say where each part of it comes from.

    mounts, devices   the entry behind each part of the definition, and in `drops` of its `dropped`
    once              warnings that need not be said again while the definition stays the same
    passing           it depends on the names of all variables, or on standard input, and is for this call only
    """

    definition: Definition
    layer: Layer
    info: ImageInfo | None
    warnings: tuple[str, ...]
    mounts: dict[Mount, Entry]
    devices: dict[str, Entry]
    once: tuple[str, ...] = ()
    passing: bool = False
    drops: dict[str, Entry] = field(default_factory=dict)
    script_inside: bool = False


def render(request: str, host: Host, config: EnvironmentConfig, resolve: Resolver) -> Rendered:
    """Return what `request` means. `resolve` is asked for the image.

    Raises EnvironmentFileError, or what `resolve` raises (with the image's place added).
    """
    problems = Problems()
    layer = edf.load(request, host, config, problems)
    warnings = list(layer.warnings)
    dropped: dict[str, Entry] = {}
    sources = _mounts(layer, host, config, dropped, warnings, problems)
    devices = _devices(layer, host, problems)
    workdir = None
    with problems.gather():
        workdir = _own_workdir(layer, host)
    annotations = _annotations(layer, host, problems)
    info, known = None, not problems
    with problems.gather():
        # Nobody waits for a registry, and a pull, to be told of a misspelt key.
        info = _image(layer, host, resolve if known else unresolved)
        if info is None and known:
            _refuse_without_image(layer, sources, devices)
    startup = around.startup(layer, host, info, problems) if known else None
    save = around.save(layer, host, info, config, problems) if known else None
    # A variable that is not defined may be the image's.
    set_env, unset_env = variables.of_container(layer, host, info, warnings, problems if known else Problems())
    problems.report()
    warnings += info.warnings if info is not None else ()
    policy = layer.scalars.get("env_policy")
    clean = info is not None and policy is not None and policy.value == "clean"
    outside = variables.outside(host, config.stay_outside, set_env, clean=clean) if info is not None else ()
    entrypoint = layer.scalars.get("entrypoint")
    writable = layer.scalars.get("writable")
    remap_root = layer.scalars.get("remap_root")
    home = layer.scalars.get("home")
    definition = Definition(
        request=request,
        files=tuple(source.path for source in layer.sources),
        image=info.image if info else None,
        workdir_given=workdir is not None,
        workdir=workdir or (squeeze(info.workdir) if info and info.workdir else None),
        entrypoint=info.entrypoint if info and entrypoint and entrypoint.value else (),
        writable=bool(writable.value) if writable else True,
        remap_root=bool(remap_root.value) if remap_root else False,
        home=None if home is None else bool(home.value),
        mounts=tuple(sources),
        dropped=tuple(dropped),
        devices=tuple(devices),
        set_env=set_env,
        unset_env=tuple(dict.fromkeys((*unset_env, *outside))),
        annotations=annotations,
        startup=startup,
        save=save,
    )
    _check_size(definition)
    left = [] if clean else [name for name in outside if host.variables.get(name)]
    for name in outside if not clean else ():
        if name not in host.variables:
            host.variable(name)  # who has it the next time is to be warned
    text = f"variables of the host stay outside the container, as what they name is not there: {', '.join(left)}"
    once = (f"{text}; [env] sets what the image needs",) if left else ()
    passing = clean or any(source.path == STANDARD_INPUT for source in layer.sources)
    inside = _script_inside(layer, config, info)
    return Rendered(definition, layer, info, tuple(warnings), sources, devices, once, passing, dropped, inside)


@contextmanager
def _placed(entry: Entry) -> Iterator[None]:
    """Give the errors of the block the entry's place, unless they have one."""
    try:
        yield
    except (EnvironmentFileError, ImageError) as error:
        if error.location is None:
            error.location = entry.locate()
        raise


def _text(layer: Layer, key: str, host: Host, own: Mapping[str, str] | None = None) -> tuple[str, Entry] | None:
    entry = layer.scalars.get(key)
    if entry is None:
        return None
    text = edf.expand_entry(entry, host, own)
    return (text, entry) if text else None


def _image(layer: Layer, host: Host, resolve: Resolver) -> ImageInfo | None:
    image = _text(layer, "image", host)
    if image is None:
        return None
    reference, entry = image
    with _placed(entry):
        if reference.lower().endswith((".sif", ".simg")):
            raise ImageError(
                f"{reference[:200]} is an image of apptainer's, which cannot be used as it is",
                'name the image that it was made from (docker://REF becomes image = "REF"), or unpack it, '
                "`apptainer build --sandbox DIR FILE.sif`, and make a SquashFS file: mksquashfs DIR FILE.sqsh",
            )
        if is_path(reference):
            reference = host.absolute(reference)
            _check_readable(reference, host, "image", regular=True)
        info = resolve(reference)
    for path in info.watch:
        host.watch(path)
    return info


def _refuse_without_image(layer: Layer, sources: dict[Mount, Entry], devices: dict[str, Entry]) -> None:
    entrypoint = layer.scalars.get("entrypoint")
    workdir = layer.scalars.get("workdir")
    remap_root = layer.scalars.get("remap_root")
    script = layer.scalars.get("script")
    for what, entry in (
        ("mounts need", next(iter(sources.values()), None)),
        ("devices need", next(iter(devices.values()), None)),
        ("a workdir needs", workdir if workdir and workdir.value else None),
        ("an entrypoint needs", entrypoint if entrypoint and entrypoint.value else None),
        ("remap_root needs", remap_root if remap_root and remap_root.value else None),
        ("a script inside needs", script if script and script.value == "inside" else None),
    ):
        if entry is not None:
            raise EnvironmentFileError(f"{what} an image, and there is none", _NEEDS_CONTAINER, entry.locate())


def _script_inside(layer: Layer, config: EnvironmentConfig, info: ImageInfo | None) -> bool:
    entry = layer.scalars.get("script")
    return info is not None and (config.script if entry is None else entry.value) == "inside"


def _own_workdir(layer: Layer, host: Host) -> str | None:
    """Return the working directory that the files name, or None."""
    own = _text(layer, "workdir", host, later.MARKS)
    if own is None:
        return None
    path, entry = own
    if path.startswith("./"):
        path = host.absolute(path)
    if not path.startswith("/"):
        raise EnvironmentFileError(f"workdir '{path[:200]}' is not an absolute path", None, entry.locate())
    if len(os.fsencode(path)) > WORKDIR_LIMIT:
        raise EnvironmentFileError(f"workdir is longer than {WORKDIR_LIMIT} bytes", None, entry.locate())
    return squeeze(path)


def _mounts(
    layer: Layer,
    host: Host,
    config: EnvironmentConfig,
    dropped: dict[str, Entry],
    warnings: list[str],
    problems: Problems,
) -> dict[Mount, Entry]:
    """Return the mounts in the order in which they are made, with the entries behind them.

    `dropped` gets the destinations at which what every container has is not wanted.
    """
    with problems.gather():
        if len(layer.mounts) > MOUNTS_LIMIT:
            raise EnvironmentFileError(
                f"there are {len(layer.mounts)} mounts, more than the limit of {MOUNTS_LIMIT}",
                "mount a directory above them",
                layer.mounts[MOUNTS_LIMIT].locate(),
            )
    wanted: list[Mount] = []
    entries: dict[Mount, Entry] = {}
    for entry in layer.mounts[:MOUNTS_LIMIT]:
        with problems.gather(), _placed(entry):
            # A colon in a variable's value is part of a path, never a separator.
            text = edf.expand_entry(entry, host, later.MARKS, mounts.quote)
            if text.startswith("!"):
                wanted = _drop(wanted, text[1:], entry, host, config, dropped, warnings)
                continue
            mount = mounts.parse(text)
            if mount.kind != "tmpfs":
                mount = _absolute(mount, host)
            wanted.append(mount)
            entries.setdefault(mount, entry)
    result = {mount: entries[mount] for mount in mounts.arrange(wanted)}
    for mount, entry in result.items():
        if mount.kind != "tmpfs" and not later.is_the_nodes(mount.source, mount.flags, config.node_local):
            with problems.gather(), _placed(entry):
                _check_readable(mount.source, host, "the source of the mount", regular=mount.kind == "sqsh")
    return result


def _drop(
    wanted: list[Mount],
    text: str,
    entry: Entry,
    host: Host,
    config: EnvironmentConfig,
    dropped: dict[str, Entry],
    warnings: list[str],
) -> list[Mount]:
    destination = mounts.parse_destination(mounts.unquote(text))
    if destination in defaults.SYSTEM:
        what = f"the container cannot be without {destination}"
        raise EnvironmentFileError(what, "mount something else there if you know what programs need of it")
    if defaults.may_be_dropped(destination, config) or destination == host.variable("HOME"):
        dropped[destination] = entry
        return [mount for mount in wanted if mount.destination != destination]
    left = [mount for mount in wanted if mount.destination != destination]
    if len(left) == len(wanted):
        place = entry.locate()
        warnings.append(f"{place.path}:{place.line}: nothing is mounted at {destination}, so there is nothing to drop")
    return left


def _absolute(mount: Mount, host: Host) -> Mount:
    if not mount.source.startswith(("/", "./", "../")) and mount.source not in (".", ".."):
        hint = f"a path relative to the working directory begins with './': ./{mount.source[:200]}"
        if mount.source.startswith("~"):
            hint = "write ${HOME} for '~'"
        elif mount.source.startswith("$"):
            hint = "a variable is written ${NAME}, with braces"
        raise EnvironmentFileError(f"the source '{mount.source[:200]}' of the mount is not an absolute path", hint)
    source = host.absolute(mount.source)
    return replace(mount, source=source, destination=mount.destination or mounts.parse_destination(source))


def _check_readable(path: str, host: Host, what: str, *, regular: bool) -> None:
    """Refuse a `path` that this user could not use on the nodes either."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        link = _dangling(path)
        if link is not None:
            what = f"{what}, {path}, leads nowhere: {link} is a symbolic link to {os.readlink(link)}"
            raise EnvironmentFileError(what, "mend the link, or name what is meant") from None
        near = nearest_path(path)
        hint = f"did you mean {near}?" if near else None
        if "$" in path:
            hint = "a variable is written ${NAME}, with braces"
        elif "/~" in path:
            hint = "write ${HOME} for '~'"
        raise EnvironmentFileError(f"{what}, {path}, does not exist", hint) from None
    except OSError as error:
        hint = "a directory above it is closed to you: see namei -l" if isinstance(error, PermissionError) else None
        if error.errno == errno.ELOOP:
            hint = "a symbolic link leads to itself: see namei -l"
        raise EnvironmentFileError(f"{what}, {path}, cannot be used: {error.strerror}", hint) from None
    if regular and not stat.S_ISREG(mode):
        raise EnvironmentFileError(f"{what}, {path}, is not a SquashFS file but another kind of file")
    # To enter a directory is enough to mount it: its contents have permissions of their own.
    needed = os.X_OK if stat.S_ISDIR(mode) else os.R_OK if stat.S_ISREG(mode) else os.F_OK
    if not os.access(path, needed):
        raise EnvironmentFileError(f"{what}, {path}, cannot be read by you", "see its permissions with ls -ld")
    host.exists(path)


def _dangling(path: str) -> str | None:
    """Return the symbolic link on `path`, which does not exist, that leads to nothing; None: there is none."""
    at = ""
    for part in path.split("/")[1:]:
        at += "/" + part
        if not os.path.exists(at):
            return at if os.path.islink(at) else None
    return None


def _devices(layer: Layer, host: Host, problems: Problems) -> dict[str, Entry]:
    result: dict[str, Entry] = {}
    for entry in layer.devices:
        with problems.gather():
            device = edf.expand_entry(entry, host)
            if _CDI.fullmatch(device):
                result.setdefault(device, entry)
                continue
            if not device.startswith("/dev/") or ".." in device.split("/"):
                hint = "a device is /dev/NAME, or a CDI name like vendor.com/class=name"
                raise EnvironmentFileError(f"'{device[:200]}' is not a device", hint, entry.locate())
            result.setdefault(squeeze(device), entry)
    return result


def _annotations(layer: Layer, host: Host, problems: Problems) -> dict[str, str]:
    values = {}
    for name, entry in layer.annotations.items():
        with problems.gather():
            values[name] = edf.expand_entry(entry, host)
    return values


def _check_size(definition: Definition) -> None:
    try:
        size = len(definition.to_json())
    except UnicodeEncodeError:
        raise EnvironmentFileError(
            "the definition holds a path that is not UTF-8", "see the working directory and EDF_PATH"
        ) from None
    if size > LIMIT_BYTES:
        env = sum(len(name) + len(value) for name, value in definition.set_env.items())
        raise EnvironmentFileError(
            f"the definition is {size} bytes long, more than the limit of {LIMIT_BYTES} bytes",
            f"{env} of them are environment variables" if env > size // 2 else "leave something out",
        )


def unresolved(reference: str) -> ImageInfo:
    """Return what is known of an image that could not be looked at."""
    return ImageInfo(Image(reference, "site"))
