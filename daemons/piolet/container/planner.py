"""From a definition to a plan: what a container gets besides what its definition names.

Pure: the worker, on the node and as the user, finds out what of it is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from piolet.base.errors import PioletError
from piolet.container import around
from piolet.container.entries import Additions
from piolet.container.plan import (
    ENTRY_PROGRAM,
    HOME_FOLDER,
    OF_JOB,
    SCRIPT,
    SHARED,
    SHELL,
    ContainerPlan,
    PlannedFolder,
    PlannedMount,
    PlannedSave,
)
from piolet.environment import defaults
from piolet.environment.definition import Definition, Mount
from piolet.environment.mounts import parse
from piolet.environment.settings import EnvironmentConfig


def entry_program(definition: Definition) -> bool:
    """Return whether the definition wants the entry program in front of the tasks' command."""
    return bool(definition.entrypoint or definition.remap_root or definition.startup or definition.save)


def make_plan(
    definition: Definition,
    label: str,
    home: str | None,
    config: EnvironmentConfig,
    spool: str | None = None,
    additions: Additions = Additions(),  # noqa: B008 - it is frozen
    user: str = "",
) -> ContainerPlan:
    """Return the plan of a container; `home` is the user's home directory, mounted if the site wants that.

    spool      SlurmdSpoolDir, where a step's PMIx server has its directory
    additions  of hooks and devices
    user       the user's name

    A mount of the user's takes the place of ours at and below its destination; the site's below it stay, where the
    user's has a place for them.
    """
    assert definition.image is not None
    mounts = [PlannedMount(path, path) for path in defaults.SYSTEM]
    mounts += [PlannedMount(path, path, optional=True) for path in defaults.DIRECTORIES]
    mounts += [PlannedMount(path, path, flags=("ro",), optional=True, file=True) for path in defaults.FILES]
    if spool is not None:
        mounts.append(PlannedMount(spool, spool, flags=("noexec",), optional=True))
    wanted = config.mount_home if definition.home is None else definition.home
    if home is not None and home.startswith("/") and home != "/" and wanted:
        mounts.append(PlannedMount(home, home, optional=True))
    mounts = [mount for mount in mounts if not _is_below(mount.destination, definition.mounts)]
    for mount in map(parse, config.mounts):
        mounts.append(PlannedMount(mount.source, mount.destination or mount.source, flags=mount.flags, optional=True))
    mounts += additions.mounts
    taken = {*definition.dropped, *(mount.destination.rstrip("/") for mount in definition.mounts)}
    mounts = [mount for mount in mounts if mount.destination not in taken]
    helper = config.entry_program
    entry = entry_program(definition) or additions.tasks or config.runtime == "crun"
    if entry:
        mounts.append(PlannedMount(helper, ENTRY_PROGRAM, flags=("ro",)))
    # Shorter destinations first, so that none hides another; the user's own after ours of the same depth.
    mounts += [PlannedMount(m.source, m.destination, m.kind, m.flags) for m in definition.mounts]
    script = around.script(definition.startup, definition.save)
    if script:
        mounts.append(PlannedMount("", SHARED, "tmpfs"))
        mounts.append(PlannedMount("", SCRIPT, "text", ("ro",), file=True, content=script))
    if definition.startup is not None and definition.startup.per == "job":
        if not home:
            raise PioletError(
                "[startup] per job needs a home directory, by which nodes tell each other", 'per = "node"'
            )
        mounts.append(PlannedMount(f"{home}/{HOME_FOLDER}", OF_JOB, "made"))
    mounts.sort(key=lambda mount: mount.destination.rstrip("/").count("/"))
    workdir = "" if definition.workdir_given else definition.workdir or ""
    directories = () if definition.workdir_given else tuple(one for one in (definition.chdir, workdir) if one)
    return ContainerPlan(
        label=label,
        sqsh=definition.image.path if definition.image.store == "user" else None,
        writable=definition.writable,
        runtime=config.runtime,
        mounts=tuple(mounts),
        entrypoint=(*((SHELL, SCRIPT) if script else ()), *definition.entrypoint),
        shell=bool(script),
        save=_saved(definition, label, home, user),
        directories=directories,
        workdir=workdir,
        folders=tuple(folder for folder in (_without(one, taken) for one in additions.folders) if folder.names),
        links=additions.links,
        libraries=additions.libraries,
        compatible=additions.compatible,
        programs=additions.programs,
        accounts=additions.accounts,
        remapped=definition.remap_root,
    )


def _saved(definition: Definition, label: str, home: str | None, user: str) -> PlannedSave | None:
    save = definition.save
    if save is None:
        return None
    env, labels = (tuple(f"{name}={text}" for name, text in of.items()) for of in (save.env, save.labels))
    step = label.rpartition(":")[2]
    return PlannedSave(
        step, save.file, save.name, save.store, home or "", user, env, save.entrypoint, save.workdir, labels
    )


def _without(folder: PlannedFolder, taken: Collection[str]) -> PlannedFolder:
    """Return a folder without the files in whose place a user has mounted something."""
    if not any(path.startswith(f"{folder.destination}/") for path in taken):
        return folder
    names = tuple(name for name in folder.names if f"{folder.destination}/{name}" not in taken)
    return dataclasses.replace(folder, names=names)


def _is_below(path: str, mounts: Iterable[Mount]) -> bool:
    return any(path == mount.destination or path.startswith(mount.destination + "/") for mount in mounts)
