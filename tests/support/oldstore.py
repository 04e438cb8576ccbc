"""Images in a store as the releases before decision 70 left them: one id, no SHA-256, and fewer fields."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path


def age(store: Path, digest: str) -> Path:
    """Make an image of the store one of an older release, in place; return its file."""
    path = store / f"{digest.replace(':', '-')}.sqsh"
    owner = path.stat()
    with tempfile.TemporaryDirectory() as room:
        made = Path(room) / "old.sqsh"
        subprocess.run(["unsquashfs", "-q", "-n", "-d", f"{room}/tree", path], check=True, capture_output=True)
        # The words of those releases, but for the source of the files.
        words = ["-noappend", "-all-root", "-no-xattrs", "-comp", "zstd", "-mkfs-time", "0", "-noI", "-quiet"]
        subprocess.run(["mksquashfs", f"{room}/tree", made, *words], check=True, capture_output=True)
        content = made.read_bytes()
    metadata = _read(path.with_suffix(".json"))
    kept = {key: metadata[key] for key in ("version", "digest", "config", "sources")} | {"size": len(content)}
    access = _read(path.with_suffix(".access"))
    access.pop("given_up", None)
    for file, data in (
        (path, content),
        (path.with_suffix(".json"), json.dumps(kept).encode()),
        (path.with_suffix(".access"), json.dumps(access).encode()),
    ):
        new = store / "tmp" / "aged"
        new.write_bytes(data)
        new.chmod(file.stat().st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(new, owner.st_uid, owner.st_gid)
        new.rename(file)
    return path


def ids(path: Path) -> int:
    """Return how many ids a SquashFS file has."""
    return int.from_bytes(path.read_bytes()[26:28], "little")


def _read(path: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads(path.read_text("utf-8"))
    return value
