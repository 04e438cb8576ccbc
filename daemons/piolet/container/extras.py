"""What hooks and devices add to a container's own root, and what they start in it: the worker's half.

All of it happens as the user, in the container: files of the image are read here, by our own reader, and no program of
the image runs but those that a hook names, which run in the step's control groups.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import select
import signal
import stat
from collections.abc import Collection

from piolet.base.errors import ContainerError
from piolet.container.plan import ContainerPlan, PlannedProgram
from piolet.system import ldcache

_PASSWD = "/etc/passwd"  # noqa: S105 - a path
_CACHE = "/etc/ld.so.cache"
_LIBRARY = re.compile(r"lib.+\.so\.\d+")
_CUDA = re.compile(r"libcuda\.so\.(\d+)\..*")


def write(plan: ContainerPlan, made: Collection[str]) -> None:
    """Make links and have the loader find libraries, in the root of this process, before anything is mounted there.

    made  the directories in which the plan's links are there

    Raises ContainerError.
    """
    for path, target in plan.links:
        try:
            if os.path.dirname(path) not in made:
                _link(path, target)
        except OSError as error:
            raise ContainerError(f"cannot make the link {path} in the container: {error.strerror}") from None
    if plan.libraries or any(folder.libraries for folder in plan.folders):
        try:
            _extend_cache(plan)
        except OSError as error:
            raise ContainerError(f"cannot write the container's {_CACHE}: {error.strerror}") from None


def _link(path: str, target: str) -> None:
    try:
        os.symlink(target, path)  # mostly there is nothing, in a directory that is there
    except FileExistsError:
        if not os.path.islink(path) or os.readlink(path) != target:
            os.unlink(path)
            os.symlink(target, path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.symlink(target, path)


def _extend_cache(plan: ContainerPlan) -> None:
    own = [one for directory, version in plan.compatible for one in _compatible(directory, version)]
    newer = {name for name, _, _ in own}
    given = [*plan.libraries]
    given += [(name, f"{one.destination}/{name}", False) for one in plan.folders for name in one.libraries]
    added = own + [one for one in given if one[0] not in newer]
    before = b""
    with contextlib.suppress(FileNotFoundError):
        # Not blocking, and no further than a cache can be long: it may be anything.
        descriptor = os.open(_CACHE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                before = file.read(ldcache.LIMIT + 1)
    try:
        if len(before) > ldcache.LIMIT:
            raise ldcache.MalformedError
        data = ldcache.extended(before, added, platform.machine())
    except ldcache.MalformedError:
        # The loader does not read such a one, either.
        data = ldcache.extended(b"", added, platform.machine())
    except KeyError:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_CACHE)
    os.makedirs(os.path.dirname(_CACHE), mode=0o755, exist_ok=True)
    with open(_CACHE, "wb") as file:
        file.write(data)


def _compatible(directory: str, version: str) -> list[tuple[str, str, bool]]:
    """Return the image's own CUDA libraries, if they are of a newer driver than `version`: by major number."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    majors = [int(match[1]) for name in names if (match := _CUDA.fullmatch(name))]
    host = version.partition(".")[0]
    if not majors or not host.isdigit() or max(majors) <= int(host):
        return []
    return [(name, f"{directory}/{name}", False) for name in names if _LIBRARY.fullmatch(name)]


def account_lines(plan: ContainerPlan) -> list[str]:
    """Return the lines of passwd for the plan's accounts, by the node's databases: before the root is changed."""
    lines: list[str] = []
    if any(mount.destination in ("/etc", _PASSWD) for mount in plan.mounts):
        return lines  # the user has mounted theirs
    for name in plan.accounts:
        with contextlib.suppress(KeyError):
            one = pwd.getpwnam(name)
            lines.append(f"{name}:x:{one.pw_uid}:{one.pw_gid}:{one.pw_gecos}:/:/sbin/nologin")
    return lines


def start(plan: ContainerPlan) -> None:
    """Start the programs, in order, in the finished container. Raises ContainerError."""
    for program in plan.programs:
        _start(program)


def _start(program: PlannedProgram) -> None:
    name = program.words[0]
    read, write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become(program, write)
    os.close(write)
    try:
        with open(read, "rb") as pipe:
            why = pipe.read(64)  # empty once it runs
        if why:
            os.waitpid(child, 0)
            raise ContainerError(f"cannot run {name} in the container: {os.strerror(int(why))}")
        if not program.wait_s:
            return
        ended = os.pidfd_open(child)
        in_time = bool(select.select([ended], [], [], program.wait_s)[0])
        os.close(ended)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not in_time:
            raise ContainerError(f"{name} did not end within {program.wait_s:g} s in the container")
        if code:
            raise ContainerError(f"{name} failed in the container: {_how(code)}", program.failure or None)
    except OSError as error:
        raise ContainerError(f"cannot run {name} in the container: {error.strerror}") from None


def _how(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def _become(program: PlannedProgram, pipe: int) -> None:
    """Be the program, in a session of its own, with nothing of the worker's open. Never returns."""
    try:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        environment = dict(entry.partition("=")[::2] for entry in program.environment)
        # Every other descriptor is closed by exec. It is an ordinary uid, so exec leaves no capability either.
        os.execve(program.words[0], program.words, environment)
    except OSError as error:
        os.write(pipe, str(error.errno or 5).encode())
    finally:
        os._exit(127)
