"""Batch scripts: which one an sbatch was given, and what it says of the steps to come. As the user who submits it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from piolet.base import files

_SCRIPT_MAX = 4 << 20  # as sbatch's own limit (max_script_size in slurm.conf's manual, 2026)
# What starts steps: Slurm's own srun, and what starts its processes by srun within a job: from the manuals of Open MPI
# (mpirun, and PRRTE's names for it), of MPICH's Hydra (its launcher there is slurm) and of TACC (ibrun), 2026.
_STARTERS = ("srun", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prun", "oshrun", "ibrun")
_STARTER = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, _STARTERS))})(?![\w-])", re.IGNORECASE)
_PART = ("hetjob", "packjob")


@dataclass(frozen=True)
class Script:
    """A batch script."""

    text: str

    @property
    def starts_steps(self) -> bool:
        """Whether one of its lines, comments aside, names a program that starts steps."""
        lines = (line for line in self.text.splitlines() if not line.lstrip().startswith("#"))
        return any(_STARTER.search(line) for line in lines)

    def parts(self, option: str) -> list[str | None]:
        """Return the value of `--OPTION` in the #SBATCH lines of each part of the job; None: it is not there."""
        found: list[str | None] = [None]
        for words in self._lines():
            if words and words[0] in _PART:
                found.append(None)
            for number, word in enumerate(words):
                name, equals, value = word.partition("=")
                if name == f"--{option}":
                    found[-1] = value if equals else next(iter(words[number + 1 :]), "")
        return found

    def _lines(self) -> Iterator[list[str]]:
        for line in self.text.splitlines():
            if line.strip() and not line.startswith("#"):
                return  # sbatch looks no further
            if line.startswith("#SBATCH"):
                try:
                    yield shlex.split(line[len("#SBATCH") :], comments=True)
                except ValueError:
                    yield []


@dataclass(frozen=True)
class Submission:
    """How an sbatch was called."""

    words: tuple[str, ...]
    script: Script | None

    def gives(self, option: str) -> bool:
        """Return whether the command line may give `option` (it may be abbreviated), which wins over the script's."""
        names = (word.partition("=")[0] for word in self.words)
        return any(len(name) > 2 and f"--{option}".startswith(name) for name in names)


def of_sbatch(pid: int) -> Submission | None:
    """Return how the sbatch that is process `pid`, whose directory and standard input are ours, was called.

    None: it is no sbatch. The script is None where it cannot be told, as one that came through a pipe.
    """
    try:
        if not os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("sbatch"):
            return None
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = tuple(os.fsdecode(word) for word in file.read().split(b"\0")[1:-1])
    except OSError:
        return None
    return Submission(words, _script(words))


def _script(words: tuple[str, ...]) -> Script | None:
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if len(name) >= len("--wr") and "--wrap".startswith(name):
            return Script(value if equals else next(iter(words[number + 1 :]), ""))
    for word in words:
        # An option's value is no program, so what begins as one is the script.
        for place in () if word.startswith("-") else _places(word):
            found = _read(place)
            if found is not None:
                return found
    return _standard_input()


def _places(word: str) -> Iterator[str]:
    yield word
    if "/" not in word:
        yield from (os.path.join(directory, word) for directory in os.environ.get("PATH", "").split(":") if directory)


def _read(path: str) -> Script | None:
    try:
        data, _ = files.read_small(path, _SCRIPT_MAX)
    except (OSError, ValueError, files.NotRegularError):
        return None
    return _of_bytes(data)


def _standard_input() -> Script | None:
    """Return what sbatch has read from its standard input, where that can be read again."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(0).st_mode):
            return _of_bytes(os.pread(0, _SCRIPT_MAX, 0))
    return None


def _of_bytes(data: bytes) -> Script | None:
    return Script(data.decode("utf-8", "replace")) if data.startswith(b"#!") else None
