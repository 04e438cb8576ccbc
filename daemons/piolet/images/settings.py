"""The section `[images]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute, found, not_empty, setting, socket_path


def _registry(text: str) -> None:
    if not text or "/" in text or any(c.isspace() for c in text):
        raise ConfigError(f"'{text}' is not a registry", "write host or host:port, as registry.example:5000")


def _size(text: str) -> None:
    from piolet.base.units import bytes_of  # who sets nothing loads nothing

    if text and bytes_of(text) is None:
        raise ConfigError(f"'{text}' is not a size", "write a number and a unit: 500GiB, 2TiB, 800GB")


@dataclass(frozen=True)
class Keep:
    """What the store keeps: images that were used in the last `unused_s` seconds, and `size` bytes. None: any."""

    unused_s: float | None = None
    size: int | None = None


def keep_of(text: str) -> Keep:
    """Return what `keep` says: an age, a size, or both with a comma between. Raises ConfigError."""
    from piolet.base.units import bytes_of, seconds_of

    unused_s: float | None = None
    size: int | None = None
    for part in (part.strip() for part in text.split(",")) if text else ():
        found, amount = seconds_of(part), bytes_of(part)
        if found is not None and unused_s is None:
            unused_s = found
        elif amount is not None and size is None:
            size = amount
        else:
            raise ConfigError(f"'{part}' is no age or size", "write an age, a size, or both: 180d, 20TiB")
    return Keep(unused_s, size)


def _keep(text: str) -> None:
    keep_of(text)


@dataclass(frozen=True)
class ImagesConfig:
    """`[images]`: the site's image store and the service that writes it."""

    store: str = setting(
        "/var/lib/piolet/images",
        "The site's store, on a file system that all nodes share: a node whose store lacks an image fails the step.",
        absolute,
    )
    socket: str = setting("/run/piolet-images/images.sock", "Where the image service listens.", socket_path)
    account: str = setting(
        "piolet-images", "The account that the image service runs as and that owns the store.", not_empty
    )
    skopeo: str = setting("/usr/bin/skopeo", "Copies images out of registries.", absolute)
    buildah: str = setting("/usr/bin/buildah", "Builds images from Containerfiles, on nodes, as the user.", absolute)
    mksquashfs: str = setting(
        found("/usr/bin/mksquashfs", "/usr/sbin/mksquashfs", usual="/usr/bin/mksquashfs"),
        "Writes SquashFS files (4.5 or newer); the default is in /usr/sbin where only that is there, as on RHEL.",
        absolute,
    )
    policy: str = setting(
        "/etc/containers/policy.json",
        "Which images are accepted (containers-policy.json(5)); where the file is not there, every one is.",
        absolute,
    )
    compression: Literal["zstd", "lz4", "gzip", "xz", "lzo"] = setting(
        "zstd", "What mksquashfs compresses with: zstd, lz4, gzip, xz or lzo."
    )
    pull_timeout_s: int = setting(
        3600, "A pull that takes longer than this many seconds, waiting included, is given up.", least=1
    )
    lease_stale_s: int = setting(
        30, "An importer that has not renewed its lease for this many seconds is taken to be dead.", least=1
    )
    insecure_registries: tuple[str, ...] = setting(
        [], "Registries (host:port) that are spoken to without TLS; loopback ones always may be.", _registry
    )
    processors: int = setting(
        0, "Processors that one conversion may use, at a low priority; 0: half of the machine's, at most 8."
    )
    memory: int = setting(
        6144,
        "MiB of memory that each of the two processes of a conversion may take: about 1 GiB per million files.",
        least=256,
    )
    unpack_ratio: int = setting(
        50,
        "An image that unpacks to more than so many times its layers' size, and to more than 1 GiB, is refused.",
        least=1,
    )
    conversion_rate: int = setting(
        2, "MiB a second: a conversion that is slower, once two minutes have passed, is given up.", least=1
    )
    quota: str = setting(
        "500GiB", "What a user's own first pulls and imports may take in the site's store; empty: any amount.", _size
    )
    quota_images: int = setting(1000, "How many images those may be; 0: any number.")
    public_idle_days: int = setting(
        90, "A public image that nobody has asked for in so many days is removed; 0: never."
    )
    keep: str = setting(
        "",
        "Images, private ones too, that nobody used for longer than this age are removed, and, if the store is larger "
        "than this size, the longest unused; '180d, 20TiB', or one of both; empty: none.",
        _keep,
    )
    scanner: tuple[str, ...] = setting(
        [],
        "A program and its words that looks for vulnerabilities in each new image and writes JSON to standard output; "
        "'{layout}' is an OCI layout, '{root}' the unpacked image, '{data}' scanner_data. It has no network.",
        not_empty,
    )
    scanner_data: str = setting("", "A directory with the scanner's data base, which it may read; empty: none.")
    scan_policy: Literal["off", "warn", "block"] = setting(
        "off", "What becomes of images with findings, or without a scan: nothing, a warning, or they are refused."
    )
    scan_severity: Literal["critical", "high", "medium", "low"] = setting(
        "critical", "The least severity that scan_policy is about."
    )
    scan_grace_days: int = setting(
        0, "A finding counts for scan_policy once it has been published for so many days, or if nobody says since when."
    )
    scan_again_days: int = setting(
        30, "An image whose scan is so many days old, failed, or was never made is scanned again; 0: never."
    )
    scan_timeout_s: int = setting(900, "A scan that takes longer than this many seconds has failed.", least=1)
    verify: Literal["first", "always", "never"] = setting(
        "first", "When a node compares an image with the SHA-256 of its conversion: first mount, always, or never."
    )
