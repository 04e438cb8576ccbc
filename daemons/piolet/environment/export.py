"""The command of another engine that runs what a definition says, and what of it that engine cannot do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from piolet.environment import secrets
from piolet.environment.definition import Definition, Mount
from piolet.images.info import ImageInfo

ENGINES = ("podman", "docker", "apptainer")


@dataclass
class Command:
    """The words of a command, and sentences about what it does otherwise."""

    words: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def command(engine: str, definition: Definition, info: ImageInfo, home: str, words: Sequence[str]) -> Command:
    """Return the command that runs `words` as `definition` says; `home` is '' where it is not mounted.

    info  what the image has of its own, which needs no words
    """
    assert definition.image is not None
    made = Command()
    variables = {name: text for name, text in definition.set_env.items() if info.env.get(name) != text}
    mounts = [Mount(home, home)] if home else []
    mounts += [Mount(one, one) for one in ("/tmp",) if one not in definition.dropped]  # noqa: S108 - as here
    taken = {mount.destination for mount in definition.mounts}
    mounts = [mount for mount in mounts if mount.destination not in taken] + list(definition.mounts)
    if engine == "apptainer":
        _apptainer(made, definition, mounts, variables)
    else:
        _docker(made, engine, definition, mounts, variables)
    made.words += words
    if secrets.any_secret(variables):
        made.lost.append("values of variables that look like secrets are not printed: export them before the command")
    if definition.startup is not None:
        made.lost.append(f"[startup]: {engine} runs nothing before the command: put it in front, with sh -c")
    if definition.save is not None:
        how = "use --overlay" if engine == "apptainer" else f"run it without --rm, and then {engine} commit"
        made.lost.append(f"save: {how}")
    if definition.annotations:
        made.lost.append("annotations: hooks are of this engine")
    return made


def _docker(
    made: Command, engine: str, definition: Definition, mounts: Sequence[Mount], variables: dict[str, str]
) -> None:
    image = definition.image
    assert image is not None
    made.words += [engine, "run", "--rm", "--network=host", "--ipc=host"]
    made.words += ["--userns=keep-id"] if engine == "podman" else ["--user=$(id -u):$(id -g)"]
    for mount in mounts:
        if mount.kind == "tmpfs":
            made.words.append(f"--tmpfs={mount.destination}")
        elif mount.kind == "sqsh":
            made.lost.append(f"the SquashFS file {mount.source} at {mount.destination}: mount it first, by squashfuse")
        elif ":" in mount.source + mount.destination:
            # A comma and a quote are quoted as in a line of CSV.
            fields = ["type=bind", f"source={mount.source}", f"target={mount.destination}"]
            fields += ["readonly"] if "ro" in mount.flags else []
            made.words.append(f"--mount={','.join(map(_csv, fields))}")
        else:
            made.words.append(f"--volume={mount.source}:{mount.destination}{':ro' if 'ro' in mount.flags else ''}")
    for device in definition.devices:
        made.words.append(f"--device={device}")
    for name, text in variables.items():
        made.words.append(f"--env={name}" if secrets.is_secret(name) else f"--env={name}={text}")
    if definition.workdir_given and definition.workdir:
        made.words.append(f"--workdir={definition.workdir}")
    if not definition.writable:
        made.words.append("--read-only")
    if not definition.entrypoint:
        made.words.append("--entrypoint=")
    made.lost.append(f"the host's variables: {engine} passes on what --env names")
    if image.path is not None:
        made.lost.append(f"{engine} runs no SquashFS file: name the image that {image.path} was made from")
    made.words.append(image.path or _reference(image.reference, image.digest))


def _apptainer(made: Command, definition: Definition, mounts: Sequence[Mount], variables: dict[str, str]) -> None:
    image = definition.image
    assert image is not None
    made.words += ["apptainer", "run" if definition.entrypoint else "exec", "--no-mount=home,cwd,tmp"]
    if definition.writable:
        made.words.append("--writable-tmpfs")
    for mount in mounts:
        if mount.kind == "tmpfs":
            made.lost.append(f"the tmpfs at {mount.destination}: bind an empty directory, or use --scratch")
        elif mount.kind == "sqsh":
            made.words.append(f"--bind={mount.source}:{mount.destination}:image-src=/")
        else:
            fields = ["type=bind", f"source={mount.source}", f"destination={mount.destination}"]
            fields += ["ro"] if "ro" in mount.flags else []
            made.words.append(f"--mount={','.join(map(_csv, fields))}")
    for name, text in variables.items():
        if secrets.is_secret(name):
            continue  # apptainer takes the host's
        made.words.append(f"--env={name}={text}")
    if definition.workdir:
        made.words.append(f"--pwd={definition.workdir}")
    made.words.append(image.path or f"docker://{_reference(image.reference, image.digest)}")


def _reference(reference: str, digest: str | None) -> str:
    """Return the reference by its digest, as it is known: the same again, whatever becomes of the tag."""
    if digest is None or "@" in reference:
        return reference
    name, colon, tag = reference.rpartition(":")
    return f"{name if colon and '/' not in tag else reference}@{digest}"


def _csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text
