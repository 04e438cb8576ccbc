"""What the rest of Piolet needs to know of an image that was resolved."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Image:
    """The image that was resolved: by `digest` in a store, or a SquashFS `path` that the user brought.

    `store` is 'site' (mounted by the kernel) or 'user' (mounted as the user; `path` is then set).
    """

    reference: str
    store: str
    digest: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class ImageInfo:
    """An image in a store, or a `.sqsh` file, with what its own configuration says.

    env         the image's variables, in its order; of a `.sqsh` file what enroot wrote into it
    entrypoint  the image's ENTRYPOINT, empty when it has none
    workdir     the image's WORKDIR, or None
    watch       files; when one of them changes or vanishes, this answer is stale
    notes       clauses about where this is from, for who wants to know
    warnings    sentences about what of the image has no effect
    labels      the image's LABELs
    """

    image: Image
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    workdir: str | None = None
    watch: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
