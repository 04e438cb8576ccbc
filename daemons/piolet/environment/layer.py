"""What definition files say, before anything is expanded: layers, and how they are laid on each other.

Pure. `combine` is associative, so a chain of files may be folded from either end. Each value keeps
the file and the place where it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

from piolet.base.errors import Location
from piolet.base.positions import Path
from piolet.environment.source import Source


@dataclass(frozen=True)
class Entry:
    """One value of a file: a string, or true or false, and where it stands."""

    value: str | bool
    source: Source
    path: Path

    @property
    def text(self) -> str:
        """The value of an entry that holds a string."""
        assert isinstance(self.value, str)
        return self.value

    @property
    def name(self) -> str:
        """How messages call the value: `image`, `mounts[2]` (from 1), `env.PATH`."""
        return "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in self.path).removeprefix(".")

    def locate(self, *, key: bool = False, fragment: str | None = None) -> Location:
        """Return where the value stands, or its key, or `fragment` within the value."""
        return self.source.locate(self.path, key=key, fragment=fragment)


@dataclass(frozen=True)
class Layer:
    """One file, or several that were combined; `sources` are the files, base first, each once.

    scalars      image, workdir, entrypoint, writable, remap_root, env_policy, script, save
    annotations  by dotted name
    startup      by key, of which the commands are one or more
    """

    sources: tuple[Source, ...] = ()
    scalars: dict[str, Entry] = field(default_factory=dict)
    mounts: tuple[Entry, ...] = ()
    devices: tuple[Entry, ...] = ()
    env: dict[str, Entry] = field(default_factory=dict)
    annotations: dict[str, Entry] = field(default_factory=dict)
    startup: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def combine(base: Layer, above: Layer) -> Layer:
    """Return `above` laid on `base`: scalars and table entries of `above` win, lists are joined."""
    return Layer(
        sources=base.sources + tuple(s for s in above.sources if s not in base.sources),
        scalars={**base.scalars, **above.scalars},
        mounts=base.mounts + above.mounts,
        devices=base.devices + above.devices,
        env={**base.env, **above.env},
        annotations={**base.annotations, **above.annotations},
        startup={**base.startup, **above.startup},
        warnings=tuple(dict.fromkeys(base.warnings + above.warnings)),
    )


def combine_all(layers: Iterable[Layer]) -> Layer:
    """Return `layers` combined, the first at the bottom."""
    return reduce(combine, layers, Layer())
