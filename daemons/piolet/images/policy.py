"""containers-policy.json(5): which file is in force, which keys it names, and what it asks of a repository.

skopeo judges; this only finds out what it had to judge by, for the cage, which has to show the keys, and for people,
who want to know which of their images had to be signed. Scopes are looked up as that page says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from piolet.base import files

_LIMIT = 1 << 20
_OF_A_USER = ".config/containers/policy.json"
_KEYS = ("keyPath", "caPath", "rekorPublicKeyPath", "caRootsPath", "caIntermediatesPath")
_KEY_LISTS = ("keyPaths", "rekorPublicKeyPaths")
_WORDS = {"signedBy": "GPG", "sigstoreSigned": "sigstore", "signedBaseLayer": "base layer"}


def in_force(configured: str, home: str | None) -> str | None:
    """Return the policy's file: the user's own, where there is one, then the site's; None: there is none."""
    places = (*((os.path.join(home, _OF_A_USER),) if home else ()), configured)
    return next((path for path in places if os.path.exists(path)), None)


def read(path: str | None) -> dict[str, Any]:
    """Return the policy in a file; what cannot be read has nothing in it, as skopeo will say so."""
    try:
        value = json.loads(files.read_small(path, _LIMIT)[0]) if path else {}
    except (OSError, files.NotRegularError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def keys(document: Any) -> Iterator[str]:
    """Yield the paths of the keys and certificates that a policy names."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name in _KEYS and isinstance(value, str):
                yield value
            elif name in _KEY_LISTS and isinstance(value, list):
                yield from (path for path in value if isinstance(path, str))
            else:
                yield from keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys(value)


def kinds(document: Any) -> list[str]:
    """Return the kinds of signatures that a policy asks for anywhere: "GPG", "sigstore"."""
    found: set[str] = set()
    if isinstance(document, dict):
        found |= {_WORDS[str(document["type"])]} if str(document.get("type")) in _WORDS else set()
        found |= {kind for value in document.values() for kind in kinds(value)}
    elif isinstance(document, list):
        found |= {kind for value in document for kind in kinds(value)}
    return sorted(found)


def required(document: dict[str, Any], repository: str, digest: str) -> str:
    """Return the kinds of signatures that an image of `repository` had to have: "GPG", "sigstore", both, or ''."""
    scopes = document.get("transports", {})
    scopes = scopes.get("docker", {}) if isinstance(scopes, dict) else {}
    scopes = scopes if isinstance(scopes, dict) else {}
    found = next((scopes[name] for name in _names(repository, digest) if name in scopes), document.get("default"))
    wanted = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    kinds = [_WORDS.get(str(one.get("type")), "") for one in wanted]
    return ", ".join(dict.fromkeys(kind for kind in kinds if kind))


def _names(repository: str, digest: str) -> Iterator[str]:
    """Yield the scopes that hold for an image, the narrowest first."""
    yield f"{repository}@{digest}"
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])
    domain = parts[0].partition(":")[0].split(".")
    for count in range(1, len(domain)):
        yield "*." + ".".join(domain[count:])
    yield ""
