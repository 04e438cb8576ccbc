"""When an image is scanned for vulnerabilities, and what the site's policy makes of it."""

from __future__ import annotations

import time
from typing import Any

from piolet.base.errors import ImageError
from piolet.images import findings, jobs
from piolet.images.conversion import Tell
from piolet.images.findings import Policy
from piolet.images.settings import ImagesConfig


async def scan(config: ImagesConfig, job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Return what the site's scanner says of the image of `job` (scan.py), or that it failed.

    Raises ImageError: the policy refuses the image.
    """
    tell(f"scanning {job['what']}")
    try:
        found = await jobs.run(job, [], tell)
    except ImageError as error:
        found = {"at": time.time(), "error": error.message}
    judge(config, job["what"], found)
    return found


def judge(config: ImagesConfig, reference: str, found: dict[str, Any] | None) -> list[str]:
    """Return the warnings that the site's policy has about an image; raises ImageError when it refuses it."""
    policy = Policy(config.scan_policy, config.scan_severity, config.scan_grace_days * 86400.0)
    why = findings.judge(found, policy, time.time())
    if why is None:
        return []
    if policy.action == "block":
        raise ImageError(f"the site refuses the image {reference}: it {why}", "use another one, or ask the site")
    return [f"the image {reference} {why}"]
