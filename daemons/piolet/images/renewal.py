"""`piolet image prune --old-format`: images that an older release wrote are converted again.

What is needed for that is in the registry only, so each is pulled once more, by its digest and with the caller's own
credentials, and the new file takes the old one's place when it is whole. What cannot be had again stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from piolet.base.errors import ImageError
from piolet.images import client
from piolet.images.settings import ImagesConfig

IMPORTED, TO_DO, DONE, FAILED = "imported", "to be converted again", "converted again", "not converted"


def renew(config: ImagesConfig, tell: Callable[[str], None], *, dry_run: bool) -> list[dict[str, Any]]:
    """Return the entries of the site's images that are old and the caller's, each with its `state`.

    One that failed has `why`, an ImageError. Raises ImageError: the service does not answer.
    """
    found = []
    for entry in client.ask(config, {"op": "outdated"}, tell).get("entries", []):
        if not entry["sources"]:
            found.append({**entry, "state": IMPORTED})
        elif dry_run:
            found.append({**entry, "state": TO_DO})
        else:
            found.append({**entry, **_again(config, entry, tell)})
    return found


def _again(config: ImagesConfig, entry: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Have one image converted again, from the first repository that gives it."""
    why = None
    for name in entry["sources"]:
        try:
            client.renew(f"{name}@{entry['digest']}", config, tell)
        except ImageError as error:
            why = why or error
        else:
            return {"state": DONE}
    return {"state": FAILED, "why": why}
