"""An OCI layout, a directory of the user's, packed as an archive for the image service.

Only oci-layout, index.json and the blobs that the image for this machine is made of are read, all of them plain files:
no link below the directory is followed, so nothing is sent that is not part of the image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from piolet.base import files
from piolet.base.errors import ImageError
from piolet.images import archive
from piolet.images import manifest as documents
from piolet.images.tarstream import BLOCK, header

_PIECE = 1 << 20
File = tuple[str, int, int]
"""A file to send: its name in the archive, a descriptor of it, its size."""


@contextlib.contextmanager
def opened(path: str) -> Iterator[list[File]]:
    """Give the files of the layout at `path` that make its image, open; raises ImageError."""
    with contextlib.ExitStack() as stack:
        top = _directory(path, path)
        stack.callback(os.close, top)
        found: list[File] = []

        def take(folder: int, name: str, shown: str) -> File:
            try:
                fd = files.open_regular(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
            except (files.NotRegularError, IsADirectoryError):
                raise ImageError(f"{path}/{shown} is not a plain file, so {path} is no OCI layout") from None
            except OSError as error:
                raise _unreadable(f"{path}/{shown}", error) from None
            stack.callback(os.close, fd)
            found.append((shown, fd, os.fstat(fd).st_size))
            return found[-1]

        if not os.path.lexists(os.path.join(path, "oci-layout")):
            raise ImageError(f"{path} is not an OCI layout: it has no file oci-layout")
        take(top, "oci-layout", "oci-layout")
        index = _read(take(top, "index.json", "index.json"))
        folder = top
        for name, shown in (("blobs", "blobs"), ("sha256", "blobs/sha256")):
            folder = _directory(name, f"{path}/{shown}", folder)
            stack.callback(os.close, folder)

        def blob(digest: str) -> bytes:
            plain = digest.removeprefix("sha256:")
            return _read(take(folder, plain, f"blobs/sha256/{plain}"))

        raw = archive.select_oci(index, blob, path, documents.machine_architecture(os.uname().machine))
        manifest = documents.parse_manifest(raw, path)
        sent = {shown for shown, _, _ in found}
        for wanted in dict.fromkeys((manifest.config, *manifest.layers)):
            if f"blobs/sha256/{wanted.hex}" not in sent:
                take(folder, wanted.hex, f"blobs/sha256/{wanted.hex}")
                sent.add(f"blobs/sha256/{wanted.hex}")
        yield found


def pack(files: list[File], fd: int) -> None:
    """Write `files` as a tar to the pipe `fd`, and close it; a file that is shorter by now ends it early."""
    with contextlib.suppress(OSError), os.fdopen(fd, "wb") as pipe:
        for name, source, size in files:
            pipe.write(header(name.encode("ascii"), "file", 0o644, 0, size))
            at = 0
            while at < size:
                piece = os.pread(source, min(_PIECE, size - at), at)
                if not piece:
                    return
                pipe.write(piece)
                at += len(piece)
            pipe.write(bytes(-size % BLOCK))
        pipe.write(bytes(2 * BLOCK))


def _directory(name: str, shown: str, folder: int | None = None) -> int:
    """Open a directory; the one at the top may be a symbolic link, what is in it not."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if folder is None else os.O_NOFOLLOW)
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise _unreadable(shown, error, folder is None) from None


def _unreadable(shown: str, error: OSError, link_too: bool = False) -> ImageError:
    said = error.strerror
    if not link_too and os.path.islink(shown):
        said = "it is a symbolic link, and an OCI layout has none"
    return ImageError(f"cannot read {shown}: {said}")


def _read(file: File) -> bytes:
    return os.pread(file[1], documents.LIMIT_BYTES + 1, 0)
