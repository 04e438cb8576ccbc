"""The final tree of an image: its layers laid over each other, in memory, names only.

Whiteouts (`.wh.NAME`, `.wh..wh..opq`) hide what lower layers have, never what their own layer has.
A name below a symbolic link of a lower layer goes where the link points, inside the root always.
Device nodes, FIFOs and sockets hide what is below them and are left out. Refused: names that leave
the root, loops of links, hard links to nothing or to directories, more nodes than the limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from piolet.environment.images.tarstream import Member
from piolet.errors import ImageError

NODE_LIMIT = 5_000_000
_NAME_BYTES_LIMIT = 1 << 30
_LINKS_LIMIT = 40
_PREFIX = b".wh."
_OPAQUE = b".wh..wh..opq"


class Inode:
    """A file, symbolic link or special file; `ordinal` is its place in the layer that has its content."""

    __slots__ = ("kind", "layer", "mode", "mtime", "names", "ordinal", "size", "target")

    def __init__(self, member: Member, layer: int, ordinal: int) -> None:
        self.kind = member.kind
        self.layer = layer
        self.mode = member.mode
        self.mtime = member.mtime
        self.names: list[bytes] = []
        self.ordinal = ordinal
        self.size = member.size
        self.target = member.target


class HardLink:
    """Another name of an inode, given by `layer`."""

    __slots__ = ("inode", "layer")

    def __init__(self, inode: Inode, layer: int) -> None:
        self.inode = inode
        self.layer = layer


class Directory:
    """A directory; `opaque` is the last layer that hid all that was below."""

    __slots__ = ("entries", "layer", "mode", "mtime", "opaque")

    def __init__(self, layer: int, mode: int = 0o755, mtime: int = 0) -> None:
        self.entries: dict[bytes, Node] = {}
        self.layer = layer
        self.mode = mode
        self.mtime = mtime
        self.opaque = -1


Node = Directory | Inode | HardLink


class Tree:
    """What the layers that were added so far make together."""

    def __init__(self, node_limit: int = NODE_LIMIT) -> None:
        self.root = Directory(0)
        self._layer = 0
        self._limit = node_limit
        self._nodes = 0
        self._name_bytes = 0
        self._buried: dict[bytes, Inode] = {}

    def begin_layer(self, number: int) -> None:
        """Say that what is added from now on belongs to layer `number`, above all that is there."""
        self._layer = number
        self._buried = {}

    def add(self, member: Member, ordinal: int) -> None:
        """Lay one entry of the current layer over the tree."""
        parts = normalise(member.name)
        if not parts:
            if member.kind != "dir":
                raise ImageError("its tar archive replaces the root directory by something else")
            self.root.mode, self.root.mtime = member.mode, member.mtime
            return
        parents, base = parts[:-1], parts[-1]
        if any(part.startswith(_PREFIX) for part in parents):
            return  # bookkeeping of aufs, which old images carry
        if base.startswith(_PREFIX):
            self._whiteout(parents, base)
            return
        directory = self._walk(parents, create=True)
        assert directory is not None
        old = directory.entries.get(base)
        if member.kind == "dir":
            if not isinstance(old, Directory):
                old = directory.entries[base] = self._directory(base)
            old.mode, old.mtime, old.layer = member.mode, member.mtime, self._layer
        elif member.kind == "link":
            inode = self._target(member)
            if old is not inode:
                self._count(base)
                directory.entries[base] = HardLink(inode, self._layer)
        else:
            if member.kind == "symlink" and not member.target:
                raise ImageError(f"its symbolic link {shown(member.name)} points nowhere")
            self._count(base + member.target)
            directory.entries[base] = Inode(member, self._layer, ordinal)

    def directories(self) -> Iterator[tuple[bytes, Directory]]:
        """Yield every directory but the root with its path, parents first, in the order of their names.

        On the way each inode is told its names; it must be called once, before `Inode.names` is used.
        """
        pending: list[tuple[bytes, Directory]] = [(b"", self.root)]
        while pending:
            path, directory = pending.pop()
            if path:
                yield path[:-1], directory
            below: list[tuple[bytes, Directory]] = []
            for name in sorted(directory.entries):
                node = directory.entries[name]
                if isinstance(node, Directory):
                    below.append((path + name + b"/", node))
                else:
                    inode = node.inode if isinstance(node, HardLink) else node
                    inode.names.append(path + name)
            pending.extend(reversed(below))

    def inodes(self) -> Iterator[Inode]:
        """Yield every inode once for each of its names, in no order that matters."""
        pending = [self.root]
        while pending:
            for node in pending.pop().entries.values():
                if isinstance(node, Directory):
                    pending.append(node)
                else:
                    yield node.inode if isinstance(node, HardLink) else node

    def _count(self, name: bytes) -> None:
        self._nodes += 1
        self._name_bytes += len(name)
        if self._nodes > self._limit or self._name_bytes > _NAME_BYTES_LIMIT:
            raise ImageError(f"the image has more than {self._limit} files, or names of more than a GiB together")

    def _directory(self, name: bytes) -> Directory:
        self._count(name)
        return Directory(self._layer)

    def _walk(self, parts: list[bytes], create: bool) -> Directory | None:
        """Return the directory at `parts`, links followed inside the root; None: not there and not to be made."""
        path = [self.root]
        pending = parts[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if len(path) > 1:
                    path.pop()
                continue
            node = path[-1].entries.get(part)
            inode = node.inode if isinstance(node, HardLink) else node
            if isinstance(inode, Inode) and inode.kind == "symlink":
                links += 1
                if links > _LINKS_LIMIT:
                    raise ImageError(f"its name {shown(b'/'.join(parts))} goes through a loop of symbolic links")
                if inode.target.startswith(b"/"):
                    path = [self.root]
                pending += [piece for piece in reversed(inode.target.split(b"/")) if piece not in (b"", b".")]
                continue
            if not isinstance(node, Directory):
                if not create:
                    return None
                _check_name(part)
                node = path[-1].entries[part] = self._directory(part)
            path.append(node)
        return path[-1]

    def _target(self, member: Member) -> Inode:
        parts = normalise(member.target)
        directory = self._walk(parts[:-1], create=False) if parts else self.root
        node = directory.entries.get(parts[-1]) if directory is not None and parts else None
        if node is None:
            # A layer may hide a file and, later in the same archive, link to what it hid.
            node = self._buried.get(b"/".join(parts))
        if node is None or isinstance(node, Directory):
            what = "a directory" if parts and node is not None else "nothing that is there"
            raise ImageError(f"its hard link {shown(member.name)} points to {what}: {shown(member.target)}")
        return node.inode if isinstance(node, HardLink) else node

    def _whiteout(self, parents: list[bytes], base: bytes) -> None:
        name = base.removeprefix(_PREFIX)
        if base != _OPAQUE and name.startswith(_PREFIX):
            return
        if name in (b"", b".", b".."):
            raise ImageError(f"its whiteout {shown(base)} hides nothing that can have a name")
        directory = self._walk(parents, create=False)
        if directory is None:
            return
        if base == _OPAQUE:
            self._hide_below(directory, parents)
            return
        node = directory.entries.get(name)
        if isinstance(node, Directory):
            self._hide_below(node, [*parents, name])
            if not node.entries and node.layer < self._layer:
                del directory.entries[name]
        elif node is not None and node.layer < self._layer:
            self._bury(b"/".join([*parents, name]), node)
            del directory.entries[name]

    def _hide_below(self, directory: Directory, parts: list[bytes]) -> None:
        """Remove what lower layers put below `directory`; what the current layer put there stays."""
        if directory.opaque == self._layer:
            return  # nothing lower can have come since
        directory.opaque = self._layer
        order: list[tuple[bytes, Directory]] = [(b"".join(part + b"/" for part in parts), directory)]
        for path, below in order:  # the list grows while it is walked
            order += [(path + name + b"/", node) for name, node in below.entries.items() if isinstance(node, Directory)]
        for path, below in reversed(order):
            for name, node in list(below.entries.items()):
                if node.layer >= self._layer or (isinstance(node, Directory) and node.entries):
                    continue
                if not isinstance(node, Directory):
                    self._bury(path + name, node)
                del below.entries[name]

    def _bury(self, path: bytes, node: Inode | HardLink) -> None:
        self._buried[path] = node.inode if isinstance(node, HardLink) else node


def normalise(name: bytes) -> list[bytes]:
    """Return the components of `name` below the root; raises ImageError when it leaves the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise ImageError(f"its name {shown(name)} leaves the root directory of the image")
            parts.pop()
            continue
        _check_name(part)
        parts.append(part)
    return parts


def shown(name: bytes) -> str:
    """Return `name` for a message: quoted, short, whatever its bytes are."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 100 else text[:97] + "...")


def _check_name(part: bytes) -> None:
    if len(part) > 255:
        raise ImageError(f"its name {shown(part)} is longer than 255 bytes")
