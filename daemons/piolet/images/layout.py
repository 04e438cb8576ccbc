"""An OCI layout, a directory of the user's, packed as an archive for the image service.

Only oci-layout, index.json and the blobs that the image for this machine is made of are read, all of them plain files:
no link below the directory is followed, so nothing is sent that is not part of the image.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

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
        top = _open(path, path, None, os.O_DIRECTORY)
        stack.callback(os.close, top)
        found: list[File] = []

        def take(folder: int, name: str, shown: str) -> File:
            fd = _open(name, f"{path}/{shown}", folder, os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode):
                raise ImageError(f"{path}/{shown} is not a plain file, so {path} is no OCI layout")
            found.append((shown, fd, seen.st_size))
            return found[-1]

        if not os.path.lexists(os.path.join(path, "oci-layout")):
            raise ImageError(f"{path} is not an OCI layout: it has no file oci-layout")
        take(top, "oci-layout", "oci-layout")
        index = _read(take(top, "index.json", "index.json"))
        folder = top
        for name, shown in (("blobs", "blobs"), ("sha256", "blobs/sha256")):
            folder = _open(name, f"{path}/{shown}", folder, os.O_DIRECTORY | os.O_NOFOLLOW)
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


def _open(name: str, shown: str, folder: int | None, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        said = error.strerror
        if flags & os.O_NOFOLLOW and os.path.islink(shown):
            said = "it is a symbolic link, and an OCI layout has none"
        raise ImageError(f"cannot read {shown}: {said}") from None


def _read(file: File) -> bytes:
    return os.pread(file[1], documents.LIMIT_BYTES + 1, 0)
