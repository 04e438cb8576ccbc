"""Images of the site's store are scanned again when their scan is old, failed, or was never made.

An image stays as it is, what is known of vulnerabilities does not. The layers are gone by then, so a scanner of OCI
layouts gets one of a single layer that is made of the image (scan.py). One image at a time, by whichever service takes
its lease; a scan that fails leaves the one that is there, whose age everybody sees, and is tried again the next day.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import Any

from piolet.base.errors import ImageError
from piolet.images import findings, jobs
from piolet.images.lease import Presence, remove_tree
from piolet.images.settings import ImagesConfig
from piolet.images.store import Store

_LOG = logging.getLogger("piolet-imaged")
_LOOK_EVERY_S = 3600.0
_DAY = 86400.0


async def run(config: ImagesConfig, store: Store, presence: Presence) -> None:
    """Scan again what is due, for ever; at once where the site wants none."""
    tried: dict[str, float] = {}
    while config.scanner and config.scan_again_days:
        for digest in await asyncio.to_thread(due, store, config.scan_again_days * _DAY, time.time()):
            if time.monotonic() - tried.get(digest, -_DAY) < _DAY:
                continue
            tried[digest] = time.monotonic()
            try:
                await scan(config, store, presence, digest)
            except (OSError, ImageError) as error:
                _LOG.warning("%s is not scanned again: %s", digest[:19], getattr(error, "message", error))
        await asyncio.sleep(_LOOK_EVERY_S)


def due(store: Store, age_s: float, now: float) -> list[str]:
    """Return the images whose scan is older than `age_s`, failed, or not there; the oldest scans first."""
    found = []
    for digest in store.digests():
        scan = store.metadata(digest).get("scan") or {}
        at = 0.0 if scan.get("error") else float(scan.get("at", 0.0))
        if now - at >= age_s:
            found.append((at, digest))
    return [digest for _, digest in sorted(found)]


async def scan(config: ImagesConfig, store: Store, presence: Presence, digest: str) -> None:
    """Scan the image `digest` and keep what was found. Raises ImageError, OSError: it failed; nothing is changed."""
    name = f"{digest}-scan"
    with presence.at_work():
        if not presence.take(name):
            return  # another service is at it
        scratch = presence.scratch()
        try:
            job: dict[str, Any] = {"kind": "scan", "what": digest[:19], "scratch": scratch, "auth_fd": None}
            job |= {"insecure": False, "home": None, "of": store.image_path(digest), **jobs.settings_of(config)}
            found = await jobs.run(job, [], lambda _: None)
            _LOG.info("scanned %s again: %s", digest[:19], findings.counted(found["counts"]))
            _keep(store, digest, found)
        finally:
            remove_tree(scratch)
            presence.release(name)


def _keep(store: Store, digest: str, found: dict[str, Any]) -> None:
    with store.changing:
        if not store.present(digest):
            return  # removed meanwhile
        used = store.last_used(digest)
        store.note_scan(digest, found)
        store.describe(digest, store.metadata(digest) | {"scan": findings.brief(found)})
        # The record's time says when the image was last used, which it was not now.
        with contextlib.suppress(OSError):
            os.utime(os.path.splitext(store.image_path(digest))[0] + ".json", (used, used))
