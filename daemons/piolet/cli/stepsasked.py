"""Data of steps, as the central service shows them to who asks: which there are, and their files."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from piolet.base.errors import ObserveError, PioletError, UsageError
from piolet.site.config import Config
from piolet.transport import statements
from piolet.transport.asking import Answer

META = "meta.json"
_FILE = re.compile(r"meta\.json|[a-z]{1,20}\.parquet")
_AGAIN = 5
_NOW_S = 5.0
_SIZE_MOST = 1 << 42


class Service(Protocol):
    """What is asked: piolet.transport.asking.Asker."""

    def ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        """Return the answer. Raises PioletError."""


def service(settings: Config) -> Service:
    """Return the central service, as a user asks it. Raises ConfigError."""
    from piolet.cli import centralpeer  # who reads a directory asks nobody
    from piolet.transport.asking import Asker

    return Asker(centralpeer.of_user(settings))


def listed(asked: Service, **said: str) -> tuple[list[dict[str, Any]], bool]:
    """Return steps, the newest first, and whether these are all. Raises PioletError."""
    answer = _ask(asked, "steps", said)
    return list(answer["steps"]), bool(answer["complete"])


def named(asked: Service, name: str) -> dict[str, Any]:
    """Return a step and its files by "112.0", or "112" where the job has one step. Raises PioletError."""
    if "." not in name:
        found, _ = listed(asked, job=name)
        names = sorted({one["name"] for one in found})
        if not names:
            raise ObserveError(f"there are no data of job {name}", "piolet observe list names those that are yours")
        if len(names) > 1:
            raise UsageError(f"job {name} has {len(names)} steps", f"name one of {', '.join(names[:8])}")
        name = names[0]
    return _ask(asked, "step", {"name": name})


def now(settings: Config, job: str, step: str = "") -> dict[str, Any]:
    """Return by node what the nodes of a job's step told last; nothing where they have not yet. Raises PioletError."""
    from piolet.cli import centralpeer
    from piolet.transport.asking import Asker

    said = {"job": job, **({"step": step} if step else {})}
    found = _ask(Asker(centralpeer.of_user(settings, _NOW_S)), "stepnow", said).get("nodes")
    return found if isinstance(found, dict) else {}


def fetch(asked: Service, step: dict[str, Any], target: Path, files: Iterable[str] = ()) -> Path:
    """Copy a step's files, or these of them, into the new directory `target`. Raises PioletError.

    The directory is there whole, or not at all.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already", "name another directory with --out")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        for name in files or step["files"]:
            if name in step["files"] and _FILE.fullmatch(name):
                _fetch_file(asked, step, name, aside / name)
        os.rename(aside, target)
    except OSError as error:
        raise ObserveError(f"cannot write {error.filename or target}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _fetch_file(asked: Service, step: dict[str, Any], name: str, target: Path) -> None:
    for _ in range(_AGAIN):
        with target.open("wb") as file:
            stamp, size = "", 1
            while file.tell() < size:
                query = {"name": step["name"], "id": str(step["id"]), "file": name, "offset": str(file.tell())}
                said = _ask(asked, "stepfile", query)
                piece = base64.b64decode(said["data"])
                size = said["size"]
                if (stamp and said["stamp"] != stamp) or not 0 <= size < _SIZE_MOST:
                    break  # it was made anew meanwhile: of a step that runs
                stamp = said["stamp"]
                file.write(piece)
                if not piece and file.tell() < size:
                    raise ObserveError(f"{name} of step {step['name']} ends before its end")
            else:
                return
    raise ObserveError(f"{name} of step {step['name']} changes faster than it can be read", "try again later")


def _ask(asked: Service, what: str, said: dict[str, str]) -> dict[str, Any]:
    try:
        return asked.ask("GET", statements.question(f"/v1/{what}", said)).said
    except PioletError as error:
        if getattr(error, "status", 0) == 404:
            text = "the central service keeps no data of steps"
            raise ObserveError(text, "[keep] steps says so, on its machine") from None
        raise
