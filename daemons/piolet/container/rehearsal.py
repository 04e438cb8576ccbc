"""What the node would say to a definition, said at submit time: the node's plan, carried out in thought.

Mounts are followed as far as they show what is on this machine: only the node knows what is in the image. What the
messages to the node can hold is counted. Nothing is made or written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from piolet.base.errors import EnvironmentFileError
from piolet.container.plan import ENTRY_PROGRAM, ContainerPlan, PlannedMount
from piolet.container.planner import make_plan
from piolet.environment import later
from piolet.environment.mounts import CREATE
from piolet.environment.render import Rendered
from piolet.environment.settings import EnvironmentConfig
from piolet.submission.dependencies import Host
from piolet.transport.packets import MESSAGE_MAX

_LINKS_MAX = 40  # as the kernel
# entry.c holds no more; a test compares.
ENTRYPOINT_BYTES_MAX, ENTRYPOINT_WORDS_MAX = 65536, 1024
_LABEL = "piolet:" + "x" * 200  # longer than any


def rehearse(rendered: Rendered, host: Host, home: str | None, config: EnvironmentConfig) -> tuple[str, ...]:
    """Do so, and return what only the node can tell; `home` is that of the user. Raises EnvironmentFileError."""
    definition = rendered.definition
    if definition.image is None:
        return ()
    plan = make_plan(definition, _LABEL, home, config)
    _check_sizes(plan, rendered)
    _check_entry(rendered)
    stage = Stage(host, config.node_local)
    own = {mount.destination: entry for mount, entry in rendered.mounts.items()}
    for planned in plan.mounts:
        entry = own.get(planned.destination)
        try:
            stage.mount(planned)
        except EnvironmentFileError as error:
            if entry is None:
                continue  # one of ours, which the node leaves out
            error.location = entry.locate()
            raise
    entry = rendered.layer.scalars.get("workdir")
    if definition.workdir is not None and entry is not None and entry.value:
        try:
            if not stage.enter(definition.workdir):
                return (f"whether the image has the workdir {definition.workdir} shows on the node",)
        except EnvironmentFileError as error:
            error.location = entry.locate()
            raise
    return ()


class Stage:
    """What is mounted so far: of each destination, the host's path that is seen there, or None: not the host's."""

    def __init__(self, host: Host, local: Collection[str] = ()) -> None:
        self._host = host
        self._local = local
        self._seen: dict[str, str | None] = {}
        self._read_only: set[str] = set()

    def mount(self, mount: PlannedMount) -> None:
        """Mount it as well. Raises EnvironmentFileError: the place is missing, or of another kind than the source."""
        source = mount.source if mount.kind == "bind" else None
        place, seen = self._find(mount.destination)
        theirs = later.is_the_nodes(mount.source, mount.flags, self._local) or later.is_open(mount.destination)
        if theirs or (source is not None and not os.path.exists(source)):
            self._seen[place] = None  # the node may have it
            return
        directory = source is None or os.path.isdir(source)
        if seen is not None:
            if os.path.exists(seen):
                self._compare(mount, seen, directory)
                self._host.exists(seen)
            else:
                self._create(mount, place, seen)
        self._seen[place] = source
        if "ro" in mount.flags:
            self._read_only.add(place)

    def enter(self, workdir: str) -> bool:
        """Return whether it is known that tasks can start there. Raises EnvironmentFileError: they cannot."""
        _, seen = self._find(workdir)
        if seen is None:
            return workdir == "/"
        if later.is_open(workdir):
            return False
        what = f"workdir, {workdir}, cannot be entered: it is {seen} of the host, which"
        if not os.path.exists(seen):
            raise EnvironmentFileError(f"{what} does not exist", "make it, or name another directory")
        if not os.path.isdir(seen):
            raise EnvironmentFileError(f"{what} is not a directory")
        if not os.access(seen, os.X_OK):
            raise EnvironmentFileError(f"{what} is closed to you", "see its permissions with ls -ld")
        return True

    def _compare(self, mount: PlannedMount, seen: str, directory: bool) -> None:
        if os.path.isdir(seen) == directory:
            return
        one, other = ("directory", "file") if directory else ("file", "directory")
        raise EnvironmentFileError(
            f"{mount.source or 'a tmpfs'} is a {one} and cannot be mounted at {mount.destination}: "
            f"{seen} of the host is seen there, a {other}"
        )

    def _create(self, mount: PlannedMount, place: str, seen: str) -> None:
        above = self._innermost(place)
        assert above is not None
        parent = seen
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        closed = self._read_only & {above} or not os.path.isdir(parent) or not os.access(parent, os.W_OK)
        if CREATE in mount.flags and not closed:
            return
        what = f"the mount point {mount.destination} is not there, and nothing is made in what is mounted above it"
        text = f"{mount.source or 'tmpfs'}:{mount.destination}"
        hint = f"make {seen} yourself, or have it made by the flag {CREATE}: {text}:{CREATE}"
        if closed:
            how = " by way of a read-only mount" if above in self._read_only else ""
            hint = f"in {parent} you can make nothing{how}: choose another destination"
        raise EnvironmentFileError(what, hint)

    def _innermost(self, path: str) -> str | None:
        while path != "/":
            if path in self._seen:
                return path
            path = os.path.dirname(path)
        return None

    def _on_host(self, path: str) -> str | None:
        """Return the host's path of what is seen at `path`, which has no links; None: not the host's, or not known."""
        above = self._innermost(path)
        source = None if above is None else self._seen[above]
        return None if above is None or source is None else source + path[len(above) :]

    def _find(self, path: str) -> tuple[str, str | None]:
        """Return `path` with those links followed that the host shows, and the host's path of what is seen there."""
        done, todo, links = "/", _parts(path), 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                done = os.path.dirname(done)
                continue
            done = os.path.join(done, part)
            on_host = self._on_host(done)
            if on_host is None or done in self._seen or not _is_link(on_host):
                continue
            links += 1
            if links > _LINKS_MAX:
                raise EnvironmentFileError(f"a symbolic link in {path} leads to itself", "choose another path")
            target = os.readlink(on_host)
            todo = _parts(target) + todo
            done = "/" if target.startswith("/") else os.path.dirname(done)
        return done, self._on_host(done)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def _check_sizes(plan: ContainerPlan, rendered: Rendered) -> None:
    words = [os.fsencode(word) for word in plan.entrypoint]
    size = sum(len(word) + 1 for word in words)
    if size >= ENTRYPOINT_BYTES_MAX or len(words) > ENTRYPOINT_WORDS_MAX:
        raise EnvironmentFileError(
            f"the image's entrypoint has {len(words)} words of {size} bytes together, more than can be run",
            "set entrypoint = false",
        )
    size = len(plan.to_json())
    if size > MESSAGE_MAX - 4096:
        raise EnvironmentFileError(
            f"the plan of the container is {size} bytes long, too long for a node", "shorten its mounts"
        )


def _check_entry(rendered: Rendered) -> None:
    definition = rendered.definition
    around = definition.startup or definition.save
    for mount, entry in rendered.mounts.items() if around or definition.entrypoint else ():
        if f"{ENTRY_PROGRAM}/".startswith(mount.destination + "/"):
            needs = "[startup] and save need" if around else "the entrypoint needs"
            what = "leave them out" if around else "set entrypoint = false"
            raise EnvironmentFileError(
                f"the mount at {mount.destination} hides {os.path.dirname(ENTRY_PROGRAM)}, which {needs}",
                f"mount what you need of it elsewhere, or {what}",
                entry.locate(),
            )
