"""An eval's requirements: installed once for a set and an interpreter, before its class is imported.

The cache is a directory of the user's, named by a digest of the set, the index and the interpreter. It is made
beside its place and renamed, so that a half-installed one is never used. What the interpreter has already is not
installed again, so that a set that is satisfied needs no network. Everything is bounded; no network, no pip and a
wrong name are inconclusive, with pip's last line. The Pythons that install are isolated: what lies in the working
directory, and the user's PYTHON* variables, are for the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence

from piolet.api import USER, Inconclusive
from piolet.base import locks

_STAMP = ".complete"
_PIP = {
    "PIP_CACHE_DIR", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS",
    "PIP_INDEX_URL", "PIP_NO_CACHE_DIR", "PIP_NO_INDEX", "PIP_PROXY", "PIP_TRUSTED_HOST",
}  # fmt: skip


def key(requirements: Sequence[Sequence[str]], index_url: str = "") -> str:
    """Return the name of the directory of a set: its order does not matter."""
    wanted = sorted(list(one) for one in requirements)
    which = [sys.implementation.cache_tag, sysconfig.get_platform(), sys.prefix]
    return hashlib.sha256(json.dumps([wanted, index_url, which]).encode()).hexdigest()[:24]


def ready(directory: str, requirements: Sequence[Sequence[str]], index_url: str = "") -> list[str] | None:
    """Return where modules are looked for when the set is installed, else None."""
    place = os.path.join(directory, key(requirements, index_url))
    if not os.path.exists(os.path.join(place, _STAMP)):
        return None
    return [_site(place)]


def resolve(directory: str, requirements: Sequence[Sequence[str]], index_url: str, within_s: float) -> list[str]:
    """Install the set unless it is there, and return where its modules are. Raises Inconclusive."""
    found = ready(directory, requirements, index_url)
    if found is not None:
        return found
    end = time.monotonic() + within_s
    place = os.path.join(directory, key(requirements, index_url))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _lock(place + ".lock", end):
            found = ready(directory, requirements, index_url)
            return found if found is not None else _install(place, requirements, index_url, end)
    except OSError as error:
        raise Inconclusive(f"cannot install requirements in {directory}: {error.strerror}") from None


@contextlib.contextmanager
def _lock(path: str, end: float) -> Iterator[None]:
    """Hold a lock; another process of this user may be installing the same set."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not locks.take(descriptor, end):
            raise Inconclusive("another process is still installing the same requirements")
        yield
    finally:
        os.close(descriptor)


def _install(place: str, requirements: Sequence[Sequence[str]], index_url: str, end: float) -> list[str]:
    # Of this name there is only one, since the lock is held: what a killed process left is removed here.
    unfinished = place + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _call([sys.executable, "-I", "-m", "venv", "--without-pip", unfinished], end, "a virtual environment")
        # pip then sees what this interpreter has, and takes it as satisfied.
        with open(os.path.join(_site(unfinished), "piolet-parent.pth"), "w", encoding="utf-8") as file:
            file.writelines(f"{path}\n" for path in sys.path if path.endswith("-packages"))
        # A requirement with options of its own (an index, say) is a call of its own.
        plain = [one[0] for one in requirements if len(one) == 1]
        calls = [plain] if plain else []
        calls += [list(one) for one in requirements if len(one) > 1]
        for words in calls:
            options = ["--index-url", index_url] if index_url and "--index-url" not in words else []
            python = os.path.join(unfinished, "bin", "python")
            command = [sys.executable, "-I", "-m", "pip", "--python", python, "install", "--quiet", "--no-input",
                       "--disable-pip-version-check", "--no-warn-script-location", "--retries", "1",
                       "--timeout", "10", *options, *map(_absolute, words)]  # fmt: skip
            _call(command, end, ", ".join(one for one in words if not one.startswith("-"))[:120])
        with open(os.path.join(unfinished, _STAMP), "w", encoding="ascii"):
            pass
        shutil.rmtree(place, ignore_errors=True)
        os.rename(unfinished, place)
        return [_site(place)]
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _call(command: list[str], end: float, what: str) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=_environment(os.environ), cwd="/", text=True, errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Inconclusive(f"installing {what} took too long") from None
    if process.returncode != 0:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")]
        last = (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR: ")
        raise Inconclusive(f"cannot install {what}: {last[:300]}", USER)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those for a user's Python, and of pip's only those that say where packages are."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("PYTHON") and (not name.startswith("PIP_") or name in _PIP)
    }


def _absolute(word: str) -> str:
    """Return a requirement that is a path as one: pip does not run in the working directory."""
    return os.path.abspath(word) if word.startswith(("./", "../")) else word


def _site(place: str) -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.join(place, "lib", version, "site-packages")
