"""How fast a port is, from the network device that belongs to it."""

from __future__ import annotations

from piolet.api import Place


def speed(place: Place, directory: str) -> dict[str, float]:
    """Return {"rate": bytes per second in one direction}, of the first device in `directory`; {}: it does not say."""
    for name in place.names(directory):
        word = place.word(f"{directory}/{name}/speed")  # Mbit/s; -1, or unreadable, while it is down
        if word.isdecimal() and int(word) > 0:
            return {"rate": int(word) * 1e6 / 8}
    return {}
