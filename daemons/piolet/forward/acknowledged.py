"""What the central service has of each stream, in a file that the spool's writer reads (decision 104)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from piolet.base import files

NAME = "acknowledged.json"
_LONGEST = 1 << 20
_EPOCH = re.compile(r"[0-9a-f]{16}")


def load(directory: str, name: str = NAME) -> dict[str, int]:
    """Return epoch -> number; nothing where there is no such file, or it is damaged: the service is asked anyway."""
    try:
        data, _ = files.read_small(os.path.join(directory, name), _LONGEST)
        said = json.loads(data)
    except (OSError, ValueError, RecursionError, files.NotRegularError):
        return {}
    return numbers(said)


def store(directory: str, acknowledged: Mapping[str, int], name: str = NAME) -> None:
    """Write the file anew. Raises OSError; the old one is then as it was."""
    path = os.path.join(directory, name)
    data = json.dumps(dict(acknowledged), sort_keys=True).encode()
    files.write_whole(path, data + b"\n", f"{path}.new", mode=0o644, sync=True)


def numbers(said: object) -> dict[str, int]:
    """Return what of an object of JSON says up to which number an epoch is somewhere."""
    if not isinstance(said, dict):
        return {}
    return {
        epoch: seq
        for epoch, seq in said.items()
        if isinstance(epoch, str) and _EPOCH.fullmatch(epoch) and type(seq) is int and 0 <= seq < 2**63
    }
