"""`piolet env show JOB`, and `--environment=@JOB`: which definition a job's steps had, and the same once more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace

from piolet.base.errors import EnvironmentFileError
from piolet.cli.main import printable
from piolet.environment import later, pinned
from piolet.environment.definition import Definition
from piolet.images.info import ImageInfo
from piolet.submission.dependencies import Host


def show(job: str) -> int:
    """Print the definition of each step of a job, or of one step; those that have the same one share it."""
    groups: list[list[pinned.Pinned]] = []
    for one in pinned.find(os.environ, job):
        same = next((group for group in groups if group[0].definition == one.definition), None)
        if same is None:
            groups.append([one])
        else:
            same.append(one)
    texts = []
    for group in groups:
        others = ", ".join(one.step for one in group[1:])
        texts.append(pinned.text(group[0]) + (f"# the same: {others}\n" if others else ""))
    sys.stdout.write(printable("\n".join(texts)))
    return 0


def again(request: str, host: Host, resolve: Callable[[str], ImageInfo]) -> tuple[Definition, tuple[str, ...]]:
    """Return the definition of `@JOB` with its image as it was, pulled if need be, and warnings.

    Raises EnvironmentFileError: nothing is known of the job; a mount's source is gone. Raises what `resolve` raises.
    """
    definition, secret = pinned.again(host.variables, request)
    if definition.image is not None:
        info = resolve(pinned.pinned_name(definition))
        definition = replace(definition, image=replace(info.image, reference=definition.image.reference))
        given = {name: info.env[name] for name in secret if name in info.env}  # an image's own are no secrets of theirs
        secret = tuple(name for name in secret if name not in given)
        definition = replace(definition, set_env={**given, **definition.set_env})
    here = {name: host.variables[name] for name in secret if host.variables.get(name)}
    definition = replace(definition, set_env={**definition.set_env, **here})
    for mount in definition.mounts:
        nodes = mount.kind == "tmpfs" or later.is_the_nodes(mount.source, mount.flags, ())
        if not nodes and not os.path.exists(mount.source):
            raise EnvironmentFileError(f"{mount.source}, which {request} mounted, does not exist any more")
    warnings = [
        f"the value of {name} that {request} had is not kept, and your environment has none"
        for name in secret
        if name not in here
    ]
    return definition, tuple(warnings)
