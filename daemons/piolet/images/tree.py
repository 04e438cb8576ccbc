"""The final tree of an image: its layers laid over each other, in memory, names only.

Whiteouts (`.wh.NAME`, `.wh..wh..opq`) hide what lower layers have, never what their own layer has.
A name below a symbolic link of a lower layer goes where the link points, inside the root always.
Device nodes, FIFOs and sockets hide what is below them and are left out. Refused: names that leave
the root, loops of links, hard links to nothing or to directories, paths that no program could open,
more nodes than the limit, and more memory than it may take.

A node knows its directory and its own name; its path is made when it is written, and kept nowhere: through
links, an archive of some KiB can make directories so deep that every path in them has a hundred KiB.
"""

from __future__ import annotations

from collections.abc import Iterator

from piolet.base.errors import ImageError
from piolet.images.tarstream import Member

NODE_LIMIT = 5_000_000
MEMORY_LIMIT = 4 << 30
_PATH_LIMIT = 4095  # PATH_MAX of Linux counts the byte that ends a path
_LINKS_LIMIT = 40
# What the nodes take, with their place in their directory and in the lists that are made to write them: measured with
# CPython 3.11, rounded up, and held by a test.
_FILE_COST, _DIRECTORY_COST, _BURIED_COST = 450, 750, 450
_PREFIX = b".wh."
_OPAQUE = b".wh..wh..opq"


class Inode:
    """A file, symbolic link or special file; `ordinal` is its place in the layer that has its content."""

    __slots__ = ("kind", "layer", "links", "mode", "mtime", "name", "ordinal", "parent", "size", "target")

    def __init__(self, member: Member, layer: int, ordinal: int) -> None:
        self.kind = member.kind
        self.layer = layer
        self.mode = member.mode
        self.mtime = member.mtime
        self.ordinal = ordinal
        self.size = member.size
        self.target = member.target
        # Known when the tree is complete: see Tree.directories.
        self.parent: Directory | None = None
        self.name = b""
        self.links: list[tuple[Directory, bytes]] | None = None

    @property
    def path(self) -> bytes:
        """Return its first name, in full."""
        assert self.parent is not None
        return path_of(self.parent, self.name)

    @property
    def names(self) -> Iterator[bytes]:
        """Yield each of its names, in full."""
        if self.parent is not None:
            yield path_of(self.parent, self.name)
        for parent, name in self.links or ():
            yield path_of(parent, name)

    def place(self, parent: Directory, name: bytes) -> None:
        """Learn of a name."""
        if self.parent is None:
            self.parent, self.name = parent, name
        elif self.links is None:
            self.links = [(parent, name)]
        else:
            self.links.append((parent, name))


class HardLink:
    """Another name of an inode, given by `layer`."""

    __slots__ = ("inode", "layer")

    def __init__(self, inode: Inode, layer: int) -> None:
        self.inode = inode
        self.layer = layer


class Directory:
    """A directory; `opaque` is the last layer that hid all that was below, `length` what its path has in bytes."""

    __slots__ = ("entries", "layer", "length", "mode", "mtime", "name", "opaque", "parent")

    def __init__(self, layer: int, parent: Directory | None = None, name: bytes = b"") -> None:
        self.entries: dict[bytes, Node] = {}
        self.layer = layer
        self.parent = parent
        self.name = name
        self.length: int = 0 if parent is None else parent.length + 1 + len(name)
        self.mode = 0o755
        self.mtime = 0
        self.opaque = -1


Node = Directory | Inode | HardLink
Buried = dict[bytes, "Inode | Buried"]
"""What one layer hid, by the components of the names that it had."""


def path_of(parent: Directory, name: bytes) -> bytes:
    """Return the path of what is called `name` in `parent`, without a slash in front."""
    parts = [name]
    at: Directory | None = parent
    while at is not None and at.parent is not None:
        parts.append(at.name)
        at = at.parent
    return b"/".join(reversed(parts))


class Tree:
    """What the layers that were added so far make together."""

    def __init__(self, node_limit: int = NODE_LIMIT, memory_limit: int = MEMORY_LIMIT) -> None:
        self.root = Directory(0)
        self.memory = 0
        """About how much memory the nodes take, in bytes; those that were replaced count as well."""
        self._layer = 0
        self._limit = node_limit
        self._memory_limit = memory_limit
        self._nodes = 0
        self._buried: Buried = {}

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
                old = directory.entries[base] = self._directory(directory, base)
            old.mode, old.mtime, old.layer = member.mode, member.mtime, self._layer
        elif member.kind == "link":
            inode = self._target(member)
            if old is not inode:
                self._count(directory, base, _FILE_COST)
                directory.entries[base] = HardLink(inode, self._layer)
        else:
            if member.kind == "symlink" and not member.target:
                raise ImageError(f"its symbolic link {shown(member.name)} points nowhere")
            self._count(directory, base, _FILE_COST + len(member.target))
            directory.entries[base] = Inode(member, self._layer, ordinal)

    def directories(self) -> Iterator[tuple[bytes, Directory]]:
        """Yield every directory but the root with its path, parents first, in the order of their names.

        On the way each inode is told its names; it must be called once, before `Inode.names` is used.
        """
        for directory in self._directories():
            if directory.parent is not None:
                yield path_of(directory.parent, directory.name), directory
            for name in sorted(directory.entries):
                node = directory.entries[name]
                if not isinstance(node, Directory):
                    (node.inode if isinstance(node, HardLink) else node).place(directory, name)

    def inodes(self) -> Iterator[Inode]:
        """Yield every inode once for each of its names, in the order in which it is told them."""
        for directory in self._directories():
            for name in sorted(directory.entries):
                node = directory.entries[name]
                if not isinstance(node, Directory):
                    yield node.inode if isinstance(node, HardLink) else node

    def _directories(self) -> Iterator[Directory]:
        pending = [self.root]
        while pending:
            directory = pending.pop()
            yield directory
            below = [name for name, node in directory.entries.items() if isinstance(node, Directory)]
            for name in sorted(below, reverse=True):
                node = directory.entries[name]
                assert isinstance(node, Directory)
                pending.append(node)

    def _count(self, parent: Directory, name: bytes, cost: int) -> None:
        """Count a node that is to be called `name` in `parent`; raises ImageError when it is one too many."""
        if parent.length + 1 + len(name) > _PATH_LIMIT:
            raise ImageError(
                f"it has a path of more than {_PATH_LIMIT} bytes, which ends in {shown(name)}",
                "no program can open such a path; links to directories may have made it so long",
            )
        self._nodes += 1
        if self._nodes > self._limit:
            raise ImageError(f"the image has more than {self._limit} files")
        self._spend(cost + len(name))

    def _spend(self, count: int) -> None:
        self.memory += count
        if self.memory > self._memory_limit:
            raise ImageError(
                f"the image has so many files that their names take more than {self._memory_limit >> 20} MiB of memory",
                "an administrator can raise [images] memory",
            )

    def _directory(self, parent: Directory, name: bytes) -> Directory:
        self._count(parent, name, _DIRECTORY_COST)
        return Directory(self._layer, parent, name)

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
                node = path[-1].entries[part] = self._directory(path[-1], part)
            path.append(node)
        return path[-1]

    def _target(self, member: Member) -> Inode:
        parts = normalise(member.target)
        directory = self._walk(parts[:-1], create=False) if parts else self.root
        node = directory.entries.get(parts[-1]) if directory is not None and parts else None
        if node is None:
            # A layer may hide a file and, later in the same archive, link to what it hid.
            node = self._unearth(parts)
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
            self._bury(self._grave(self._buried, parents), name, node)
            del directory.entries[name]

    def _hide_below(self, directory: Directory, parts: list[bytes]) -> None:
        """Remove what lower layers put below `directory`; what the current layer put there stays."""
        if directory.opaque == self._layer:
            return  # nothing lower can have come since
        directory.opaque = self._layer
        order = [(self._grave(self._buried, parts), directory)]
        for grave, below in order:  # the list grows while it is walked
            for name, node in below.entries.items():
                if isinstance(node, Directory):
                    order.append((self._grave(grave, [name]), node))
        for grave, below in reversed(order):
            for name, node in list(below.entries.items()):
                if node.layer >= self._layer or (isinstance(node, Directory) and node.entries):
                    continue
                if not isinstance(node, Directory):
                    self._bury(grave, name, node)
                del below.entries[name]

    def _grave(self, start: Buried, parts: list[bytes]) -> Buried:
        """Return where what was called `parts`, seen from `start`, and below is buried."""
        grave = start
        for part in parts:
            below = grave.get(part)
            if not isinstance(below, dict):
                self._spend(_BURIED_COST)
                below = grave[part] = {}
            grave = below
        return grave

    def _bury(self, grave: Buried, name: bytes, node: Inode | HardLink) -> None:
        grave[name] = node.inode if isinstance(node, HardLink) else node

    def _unearth(self, parts: list[bytes]) -> Inode | None:
        found: Inode | Buried | None = self._buried
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, Inode) else None


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
