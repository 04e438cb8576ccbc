"""What a definition file does here otherwise than in CSCS' container engine, for `piolet env check --from=cscs`. Pure.

Facts: docs.cscs.ch, container engine: EDF reference, running, resources and hooks, known issues; read 2026-11-29.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from piolet.environment.layer import Entry
from piolet.environment.render import Rendered

_SSH, _SLURM, _CXI = "com.hooks.ssh", "com.hooks.slurm", "com.hooks.cxi"
_IMPLY_CXI = (_CXI, "com.hooks.aws_ofi_nccl")


def differences(rendered: Rendered, *, always: Iterable[str], home: bool, port: bool) -> list[str]:
    """Return a sentence for each part of a definition that means something else there, with its place.

    always  hooks that are on here unless switched off
    home    the site mounts home directories
    port    the site lets the hook ssh open a port
    """
    if rendered.definition.image is None:
        return list(_variables(rendered))
    found = [*_variables(rendered), *_keys(rendered, home=home), *_expansion(rendered)]
    return [*found, *_hooks(rendered, tuple(always), port=port)]


def _keys(rendered: Rendered, *, home: bool) -> Iterator[str]:
    scalars, info = rendered.layer.scalars, rendered.info
    if "entrypoint" not in scalars and (info is None or info.image.digest is None or info.entrypoint):
        yield "entrypoint is not set: there the image's entrypoint runs, here it does not; write entrypoint = true"
    if "script" not in scalars and not rendered.script_inside:
        yield (
            "script is not set: there #SBATCH --environment puts the script itself into the container, here only its "
            'sruns; write script = "inside"'
        )
    if rendered.definition.home is None and home:
        yield "home is not set: there the home directory is in no container, here it is; write home = false"


def _variables(rendered: Rendered) -> Iterator[str]:
    for name, entry in rendered.layer.env.items():
        if name == "ENROOT_SLURM_HOOK":
            yield f"{_at(entry)}: {name} has no effect here: it is the annotation {_SLURM}.enabled"
        elif name.startswith("ENROOT_"):
            yield f"{_at(entry)}: {name} has no effect here: there is no enroot"
        elif name == "NVIDIA_DRIVER_CAPABILITIES" or name.startswith("NVIDIA_REQUIRE_"):
            yield f"{_at(entry)}: {name} has no effect here: all of the driver is mounted, and nothing is compared"


def _expansion(rendered: Rendered) -> Iterator[str]:
    """Yield values with variables that the image sets: there those are the image's in every key, here in [env] only."""
    of_image = rendered.info.env if rendered.info is not None else {}
    scalars = [entry for entry in rendered.layer.scalars.values() if isinstance(entry.value, str)]
    for entry in (*scalars, *rendered.layer.mounts):
        for name in of_image:
            if f"${{{name}}}" in entry.text.replace(f"$${{{name}}}", ""):
                yield f"{_at(entry)}: ${{{name}}} is the image's there, and here the host's"


def _hooks(rendered: Rendered, always: tuple[str, ...], *, port: bool) -> Iterator[str]:
    annotations = rendered.layer.annotations
    values = {name: entry.value for name, entry in annotations.items()}
    if not {name for hook in _IMPLY_CXI for name in values if name.startswith(f"{hook}.")} and "cxi" not in always:
        yield f"the hook cxi is not named: there it is on by itself on most systems; write {_CXI}.enabled"
    if f"{_SLURM}.enabled" not in values and "slurm" not in always:
        yield f"Slurm's commands are in no container unless {_SLURM}.enabled says so; there they are on most systems"
    if _on(values, _SSH):
        entry = annotations[f"{_SSH}.enabled"]
        if port and f"{_SSH}.port" in values:
            return
        yield (
            f"{_at(entry)}: the server of the hook ssh has no port here, and 15263 there; docs/hooks.md has the lines "
            "for ~/.ssh/config (the site can allow a port)"
        )


def _on(values: Mapping[str, object], hook: str) -> bool:
    return values.get(f"{hook}.enabled") == "true"


def _at(entry: Entry) -> str:
    place = entry.locate()
    return f"{place.path}:{place.line}"
