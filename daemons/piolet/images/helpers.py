"""Credential helpers: the programs `docker-credential-NAME` that a user's own configuration names.

They are of the user's choice, so they run here, in the user's own process beside srun or `piolet image pull`, and
never in the image service. One call: the registry on standard input, a JSON object on standard output
(docker's protocol, docker-credential-helpers). Bounded in time and output; what is left of it is ended.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping

LIMIT_S = 30.0
_OUTPUT = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_TOKEN = "<token>"  # noqa: S105 - what a helper calls the user of an identity token


class HelperError(Exception):
    """A helper gave nothing; the text is a clause that says why."""


def ask(name: str, server: str, variables: Mapping[str, str], limit_s: float = LIMIT_S) -> dict[str, str] | None:
    """Return the entry that the helper `name` has for `server`, or None: it has none. Raises HelperError."""
    if not _NAME.fullmatch(name):
        raise HelperError(f"'{name[:40]}' is not a helper's name")
    path = shutil.which(f"docker-credential-{name}", path=variables.get("PATH", os.defpath))
    if path is None:
        raise HelperError(f"docker-credential-{name} is not on your PATH")
    said, status = _run([path, "get"], server, variables, limit_s)
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        value = None
    if status or not isinstance(value, dict):
        if b"credentials not found" in said:
            return None
        words = "".join(c for c in said.decode("utf-8", "replace")[:120] if c.isprintable()) if status else "no JSON"
        raise HelperError(f"docker-credential-{name} ended with status {status}: {words.strip() or 'it said nothing'}")
    user, secret = value.get("Username"), value.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str) or not secret:
        raise HelperError(f"docker-credential-{name} gave no user and secret")
    if user == _TOKEN:
        return {"identitytoken": secret}
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def _run(command: list[str], server: str, variables: Mapping[str, str], limit_s: float) -> tuple[bytes, int]:
    name, until = os.path.basename(command[0]), time.monotonic() + limit_s
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(variables),
            start_new_session=True,  # what it starts ends with it
        )
    except OSError as error:
        raise HelperError(f"{name} cannot be run: {error.strerror}") from None
    assert child.stdin is not None and child.stdout is not None
    said = b""
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(server.encode())
        while len(said) <= _OUTPUT:
            if not select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise HelperError(f"{name} did not answer within {limit_s:g} s")
            piece = os.read(child.stdout.fileno(), _OUTPUT)
            if not piece:
                break
            said += piece
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, until - time.monotonic()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        status = child.wait()
    return said, status
