"""Images, as the rest of Piolet asks for them: resolve a reference or a path to an ImageInfo.

On srun's path, so it imports little: the site's store is reached through the service's socket, and
only a user with EDF_IMAGESTORE loads the importer itself. Every wait is bounded: the service speaks
at least every ten seconds, and one that is silent for a minute is given up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from piolet.base import files
from piolet.base.errors import ImageError
from piolet.images import credentials, protocol
from piolet.images.failures import ServiceBusy, from_wire
from piolet.images.info import Image, ImageInfo
from piolet.images.reference import Reference, is_path, parse
from piolet.images.settings import ImagesConfig
from piolet.transport import packets

if TYPE_CHECKING:
    from piolet.images.store import Store

_SILENCE_S = 60.0
_BUSY_TRIES, _BUSY_PAUSE_S = 60, 1.0
_UNIT = "piolet-imaged.service"
_HINT = f"try again; an administrator finds more in the log of {_UNIT}"


def resolve(reference: str, config: ImagesConfig, *, pull: bool, progress: Callable[[str], None]) -> ImageInfo:
    """Return the image that `reference` means, a registry's or the path of a SquashFS file.

    pull: an image that is not in the store is pulled. Otherwise it is looked up in the store, and in
    the registry if it is not there; nothing is written. `progress` gets texts without line ends.
    Raises ImageError, or RegistryUnreachable.
    """
    return find(reference, config, "pull" if pull else "look", progress)


def find(reference: str, config: ImagesConfig, mode: str, progress: Callable[[str], None]) -> ImageInfo:
    """Like `resolve`; `mode` is 'pull', 'look', or 'refresh', which asks the registry even for what is there."""
    if is_path(reference):
        return _file(reference, config)
    wanted = parse(reference)
    own = own_store()
    if own is not None:
        known = _store(own).known(wanted, os.geteuid()) if mode != "refresh" else None
        if known is not None:
            return _info(known, "user")  # without loading asyncio and all that a pull needs
        from piolet.images import personal

        answer = personal.resolve(config, own, reference, mode, progress)
        return _info(answer, "user")
    request = {"op": "resolve", "reference": reference}
    if mode != "refresh":
        # What is there needs no credentials, which a batch script's node may not have.
        answer = ask(config, request | {"mode": "known"}, progress)
        if answer:
            return _info(answer, "site")
    return _info(_ask_as_self(config, wanted, request | {"mode": mode}, progress), "site")


def is_there(reference: str, config: ImagesConfig) -> bool:
    """Return whether an image needs no pull. Raises ImageError: the reference is none, or nobody answers."""
    if is_path(reference):
        return True
    wanted, own = parse(reference), own_store()
    if own is not None:
        return _store(own).known(wanted, os.geteuid()) is not None
    return bool(ask(config, {"op": "resolve", "reference": reference, "mode": "known"}, lambda _: None))


def renew(reference: str, config: ImagesConfig, progress: Callable[[str], None]) -> None:
    """Have an image of the site's store, named by its digest, converted again if an older release wrote it.

    Raises ImageError: it is not the caller's to convert again, or the registry does not give it to the caller.
    """
    request = {"op": "resolve", "reference": reference, "mode": "renew"}
    _ask_as_self(config, parse(reference), request, progress)


def _ask_as_self(
    config: ImagesConfig, wanted: Reference, request: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the service's result for a request that may need the user's credentials."""
    found = credentials.Found() if wanted.is_local else credentials.find(wanted, os.environ)
    with found.told():
        if found.entry is None:
            return ask(config, request, progress)
        fd = credentials.in_memory(credentials.document(wanted.registry, found.entry))
        try:
            return ask(config, request, progress, fd)
        finally:
            os.close(fd)


def _store(root: str) -> Store:
    """Return a store of the user's own, or of a group that they believe; raises ImageError."""
    from piolet.images.shared import group_of
    from piolet.images.store import Store

    store = Store(root, group=group_of(root))
    with contextlib.suppress(OSError):
        store.check(os.stat(root))
    return store


def own_store() -> str | None:
    """Return the user's own store, EDF_IMAGESTORE, if there is one; raises ImageError for a relative path."""
    path = os.environ.get("EDF_IMAGESTORE")
    if path and not path.startswith("/"):
        raise ImageError(f"EDF_IMAGESTORE is the relative path '{path}'", "set it to an absolute path")
    return path or None


def ask(
    config: ImagesConfig, request: dict[str, Any], progress: Callable[[str], None], descriptor: int | None = None
) -> dict[str, Any]:
    """Send one request to the image service and return its result; parts are collected as `entries`.

    A service that is busy is asked again for a minute: a user may start a hundred steps at once.
    """
    for _ in range(_BUSY_TRIES):
        try:
            return _ask(config, request, progress, descriptor)
        except ServiceBusy as error:
            progress(error.message)
            time.sleep(_BUSY_PAUSE_S)
    return _ask(config, request, progress, descriptor)


def _ask(
    config: ImagesConfig, request: dict[str, Any], progress: Callable[[str], None], descriptor: int | None
) -> dict[str, Any]:
    entries: list[Any] = []
    for message in _talk(config.socket, request, descriptor):
        if "progress" in message:
            progress(str(message["progress"]))
        elif "part" in message:
            entries += message["part"]
        elif "error" in message:
            raise from_wire(message["error"])
        elif isinstance(message.get("result"), dict):
            return {"entries": entries, **message["result"]} if entries else message["result"]
    raise ImageError("the image service ended the conversation without an answer", _HINT)


def _talk(path: str, request: dict[str, Any], descriptor: int | None) -> Iterator[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        # Not settimeout: such a connection fails at once where a line of others waits to be accepted.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(_SILENCE_S), 0))
        try:
            connection.connect(path)
            connection.settimeout(_SILENCE_S)
            # A service that is busy answers at once and closes, perhaps before we have asked; its answer can still
            # be read, after the error that the kernel reports first.
            with contextlib.suppress(BrokenPipeError):
                protocol.send(connection, {"version": protocol.VERSION, **request}, descriptor)
        except OSError as error:
            raise ImageError(
                f"the image service does not answer at {path}: {error.strerror or error}",
                f"{_UNIT} has to run on this machine; or set EDF_IMAGESTORE to a directory of your own",
            ) from None
        was_reset = False
        while True:
            try:
                data, descriptors = protocol.receive(connection)
            except ConnectionResetError:
                if was_reset:
                    return
                was_reset = True
                continue
            except TimeoutError:
                raise ImageError(f"the image service has been silent for {_SILENCE_S:.0f} s", _HINT) from None
            except OSError as error:
                raise ImageError(f"the image service ended the conversation: {error.strerror}", _HINT) from None
            packets.close_all(descriptors)
            if not data:
                return
            yield protocol.unpack(data)


def _variables(pairs: Iterable[Any]) -> dict[str, str]:
    parts = (str(item).partition("=") for item in pairs)
    return {name: value for name, equals, value in parts if equals and name}


def _info(answer: dict[str, Any], store: str) -> ImageInfo:
    """Return an answer of the importer as an ImageInfo; raises ImageError when it is not one."""
    try:
        path = answer["path"] if store == "user" else None
        image = Image(str(answer["reference"]), store, answer["digest"], path)
        return ImageInfo(
            image=image,
            env=_variables(answer["env"]),
            entrypoint=tuple(str(item) for item in answer["entrypoint"]),
            workdir=answer["workdir"],
            watch=tuple(str(item) for item in answer["watch"]),
            labels={str(name): str(text) for name, text in answer.get("labels", {}).items()},
            warnings=tuple(str(item) for item in answer.get("warnings", ())),
        )
    except (KeyError, TypeError):
        raise ImageError("the image service gave an answer that cannot be read") from None


def _file(path: str, config: ImagesConfig) -> ImageInfo:
    """Return the SquashFS file at `path`; raises ImageError unless it is one that we can read.

    What enroot wrote into it counts as the image's configuration.
    """
    from piolet.images import enroot, peek

    path = os.path.abspath(path)
    try:
        fd = files.open_regular(path)
    except (files.NotRegularError, IsADirectoryError):
        raise ImageError(f"the image {path} is not a regular file") from None
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from None
    try:
        magic = os.read(fd, 4)
    finally:
        os.close(fd)
    if magic != b"hsqs":
        raise ImageError(
            f"the image {path} is not a SquashFS file", "other archives come in through piolet image import"
        )
    image = Image(path, "user", None, path)
    try:
        read = peek.read(path, enroot.FILES, os.path.join(os.path.dirname(config.mksquashfs), "unsquashfs"))
    except ImageError as error:
        why = f"{path}: its own variables, working directory and entrypoint are not known: {error.message}"
        return ImageInfo(image, watch=(path,), warnings=(why,))
    found = enroot.read(read, path)
    return ImageInfo(
        image, _variables(found.env), found.entrypoint, found.workdir, (path,), found.notes, found.warnings
    )
