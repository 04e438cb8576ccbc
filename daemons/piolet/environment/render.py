"""From a request to a definition: read, merge, expand, check, resolve the image.

Everything is decided here, once, as the user. What it refuses: all that the files' own rules refuse;
mounts, a workdir, an entrypoint or devices without an image; a mount whose source is not there or
not readable; a path that must be absolute and is not; a definition that is longer than its limit.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from piolet.base.errors import EnvironmentFileError, ImageError
from piolet.environment import edf, mounts
from piolet.environment.definition import LIMIT_BYTES, Definition, Mount
from piolet.environment.layer import Entry, Layer
from piolet.environment.lookup import nearest_path
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image, ImageInfo
from piolet.images.reference import is_path
from piolet.submission.dependencies import Host, squeeze

Resolver = Callable[[str], ImageInfo]

MOUNTS_LIMIT = 1000
WORKDIR_LIMIT = 4095

# The user's own, whatever the image was built with.
_USER_VARIABLES = frozenset(("HOME", "USER", "LOGNAME", "SHELL"))
# The host's locale is often not in the image. The list is fixed, so that the definition does not depend on the host.
_LOCALE = (
    *("LANG", "LANGUAGE", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION", "LC_MEASUREMENT"),
    *("LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER", "LC_TELEPHONE", "LC_TIME"),
)
_CDI = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*=\S+")
_HOOK = re.compile(r"(com\.hooks\.[^.]+)(?:\.|$)")
_NEEDS_CONTAINER = "without one the step runs on the host, and only env applies"


@dataclass(frozen=True)
class Rendered:
    """A definition, and what `explain` needs to say where each part of it comes from.

    mounts, devices   the entry behind each part of the definition
    """

    definition: Definition
    layer: Layer
    info: ImageInfo | None
    warnings: tuple[str, ...]
    mounts: dict[Mount, Entry]
    devices: dict[str, Entry]


def render(
    request: str, host: Host, config: EnvironmentConfig, resolve: Resolver, hooks: Collection[str] = ()
) -> Rendered:
    """Return what `request` means. `resolve` is asked for the image; `hooks` are those installed.

    Raises EnvironmentFileError, or what `resolve` raises (with the image's place added).
    """
    layer = edf.load(request, host, config)
    warnings = list(layer.warnings)
    sources = _mounts(layer, host, warnings)
    devices = _devices(layer, host, warnings)
    info = _image(layer, host, resolve)
    if info is None:
        _refuse_without_image(layer, sources, devices)
    set_env, unset_env = _environment(layer, host, info)
    entrypoint = layer.scalars.get("entrypoint")
    writable = layer.scalars.get("writable")
    remap_root = layer.scalars.get("remap_root")
    definition = Definition(
        request=request,
        files=tuple(source.path for source in layer.sources),
        image=info.image if info else None,
        workdir=_workdir(layer, host, info),
        entrypoint=info.entrypoint if info and entrypoint and entrypoint.value else (),
        writable=bool(writable.value) if writable else True,
        remap_root=bool(remap_root.value) if remap_root else False,
        mounts=tuple(sources),
        devices=tuple(devices),
        set_env=set_env,
        unset_env=unset_env,
        annotations=_annotations(layer, host, hooks, warnings),
    )
    _check_size(definition)
    return Rendered(definition, layer, info, tuple(warnings), sources, devices)


@contextmanager
def _placed(entry: Entry) -> Iterator[None]:
    """Give the errors of the block the entry's place, unless they have one."""
    try:
        yield
    except (EnvironmentFileError, ImageError) as error:
        if error.location is None:
            error.location = entry.locate()
        raise


def _text(layer: Layer, key: str, host: Host) -> tuple[str, Entry] | None:
    entry = layer.scalars.get(key)
    if entry is None:
        return None
    text = edf.expand_entry(entry, host)
    return (text, entry) if text else None


def _image(layer: Layer, host: Host, resolve: Resolver) -> ImageInfo | None:
    image = _text(layer, "image", host)
    if image is None:
        return None
    reference, entry = image
    with _placed(entry):
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
    for what, entry in (
        ("mounts need", next(iter(sources.values()), None)),
        ("devices need", next(iter(devices.values()), None)),
        ("a workdir needs", workdir if workdir and workdir.value else None),
        ("an entrypoint needs", entrypoint if entrypoint and entrypoint.value else None),
        ("remap_root needs", remap_root if remap_root and remap_root.value else None),
    ):
        if entry is not None:
            raise EnvironmentFileError(f"{what} an image, and there is none", _NEEDS_CONTAINER, entry.locate())


def _workdir(layer: Layer, host: Host, info: ImageInfo | None) -> str | None:
    own = _text(layer, "workdir", host)
    if own is None:
        return squeeze(info.workdir) if info and info.workdir else None
    path, entry = own
    if path.startswith("./"):
        path = host.absolute(path)
    if not path.startswith("/"):
        raise EnvironmentFileError(f"workdir '{path[:200]}' is not an absolute path", None, entry.locate())
    if len(os.fsencode(path)) > WORKDIR_LIMIT:
        raise EnvironmentFileError(f"workdir is longer than {WORKDIR_LIMIT} bytes", None, entry.locate())
    return squeeze(path)


def _mounts(layer: Layer, host: Host, warnings: list[str]) -> dict[Mount, Entry]:
    """Return the mounts in the order in which they are made, with the entries behind them."""
    if len(layer.mounts) > MOUNTS_LIMIT:
        raise EnvironmentFileError(
            f"there are {len(layer.mounts)} mounts, more than the limit of {MOUNTS_LIMIT}",
            "mount a directory above them",
            layer.mounts[MOUNTS_LIMIT].locate(),
        )
    wanted: list[Mount] = []
    entries: dict[Mount, Entry] = {}
    for entry in layer.mounts:
        # A colon in a variable's value is part of a path, never a separator.
        text = edf.expand_entry(entry, host, quote=mounts.quote)
        with _placed(entry):
            if text.startswith("!"):
                wanted = _drop(wanted, text[1:], entry, warnings)
                continue
            mount = mounts.parse(text)
            if mount.kind != "tmpfs":
                mount = _absolute(mount, host)
        wanted.append(mount)
        entries.setdefault(mount, entry)
    result = {mount: entries[mount] for mount in mounts.arrange(wanted)}
    for mount, entry in result.items():
        if mount.kind != "tmpfs":
            with _placed(entry):
                _check_readable(mount.source, host, "the source of the mount", regular=mount.kind == "sqsh")
    return result


def _drop(wanted: list[Mount], text: str, entry: Entry, warnings: list[str]) -> list[Mount]:
    destination = mounts.parse_destination(mounts.unquote(text))
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
        near = nearest_path(path)
        hint = f"did you mean {near}?" if near else None
        if "$" in path:
            hint = "a variable is written ${NAME}, with braces"
        elif "/~" in path:
            hint = "write ${HOME} for '~'"
        raise EnvironmentFileError(f"{what}, {path}, does not exist", hint) from None
    except OSError as error:
        hint = "a directory above it is closed to you: see namei -l" if isinstance(error, PermissionError) else None
        raise EnvironmentFileError(f"{what}, {path}, cannot be used: {error.strerror}", hint) from None
    if regular and not stat.S_ISREG(mode):
        raise EnvironmentFileError(f"{what}, {path}, is not a SquashFS file but another kind of file")
    # To enter a directory is enough to mount it: its contents have permissions of their own.
    needed = os.X_OK if stat.S_ISDIR(mode) else os.R_OK if stat.S_ISREG(mode) else os.F_OK
    if not os.access(path, needed):
        raise EnvironmentFileError(f"{what}, {path}, cannot be read by you", "see its permissions with ls -ld")
    host.exists(path)


def _devices(layer: Layer, host: Host, warnings: list[str]) -> dict[str, Entry]:
    result: dict[str, Entry] = {}
    for entry in layer.devices:
        device = edf.expand_entry(entry, host)
        if _CDI.fullmatch(device):
            place = entry.locate()
            warnings.append(f"{place.path}:{place.line}: CDI devices are not supported; {device} is ignored")
            continue
        if not device.startswith("/dev/") or ".." in device.split("/"):
            hint = "a device is /dev/NAME, or a CDI name like vendor.com/class=name"
            raise EnvironmentFileError(f"'{device[:200]}' is not a device", hint, entry.locate())
        result.setdefault(squeeze(device), entry)
    return result


def image_environment(info: ImageInfo | None) -> dict[str, str]:
    """Return the variables that a container takes from its image."""
    env = info.env if info else {}
    return {n: v for n, v in env.items() if n not in _USER_VARIABLES and not n.startswith(edf.STEP_PREFIXES)}


def _environment(layer: Layer, host: Host, info: ImageInfo | None) -> tuple[dict[str, str], tuple[str, ...]]:
    from_image = image_environment(info)
    set_env = dict(from_image)
    unset: dict[str, None] = {}
    for name, entry in layer.env.items():
        value = edf.expand_entry(entry, host, from_image)
        if value:
            set_env[name] = value
        else:
            set_env.pop(name, None)
            unset[name] = None
    if info is not None:
        unset.update((name, None) for name in _LOCALE if name not in set_env)
    return set_env, tuple(unset)


def _annotations(layer: Layer, host: Host, hooks: Collection[str], warnings: list[str]) -> dict[str, str]:
    values = {name: edf.expand_entry(entry, host) for name, entry in layer.annotations.items()}
    named = dict.fromkeys(match[1] for name in values if (match := _HOOK.match(name)))
    for hook in named:
        if hook not in hooks and values.get(f"{hook}.enabled", "true") != "false":
            warnings.append(f"the hook {hook} is not installed here; ignored")
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
