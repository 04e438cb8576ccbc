"""Builds an image from a Containerfile, with buildah, as the user and on this machine: in a step, that is.

buildah wants to be root. It is, of a user namespace with the one id that the user has, where a seccomp filter answers
"done" to chown and set*id (decision 83): no subordinate ids and no setuid program. What it writes on its way is below
one directory, which is removed at the end. What comes out is an OCI archive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from piolet.base.errors import ImageError
from piolet.images.settings import ImagesConfig
from piolet.system import linux, pretendroot, usernamespaces

_TAG = "localhost/piolet-build"
_SITE_REGISTRIES = Path("/etc/containers/registries.conf")
# As root apt becomes another user for downloads, and does not take it that it did not.
_APT, _APT_TEXT = "/etc/apt/apt.conf.d/99piolet", 'APT::Sandbox::User "root";\n'


@dataclass(frozen=True)
class Recipe:
    """What to build: the directory that COPY takes from, the Containerfile, and NAME=VALUE for its ARGs."""

    context: str
    file: str
    arguments: tuple[str, ...] = ()


def recipe(context: str, file: str | None, arguments: Sequence[str]) -> Recipe:
    """Return what to build, with absolute paths. Raises ImageError: something of it is not there."""
    context = os.path.abspath(context)
    if not os.path.isdir(context):
        raise ImageError(f"{context} is not a directory", "name the directory that COPY takes files from")
    names = [file] if file else [os.path.join(context, name) for name in ("Containerfile", "Dockerfile")]
    found = [os.path.abspath(name) for name in names if os.path.isfile(name)]
    if not found:
        raise ImageError(f"there is no {' and no '.join(names)}", "-f FILE names it")
    wrong = [argument for argument in arguments if not argument.partition("=")[1]]
    if wrong:
        raise ImageError(f"the build argument '{wrong[0]}' has no value", "write NAME=VALUE")
    return Recipe(context, found[0], tuple(arguments))


def build(todo: Recipe, archive: str, config: ImagesConfig) -> None:
    """Build the image, and write it to the new file `archive` as an OCI archive; buildah says itself what it does.

    Raises ImageError: there is no buildah, the user may make no namespace, or the build fails.
    """
    if shutil.which(config.buildah) is None:
        node = os.uname().nodename
        raise ImageError(f"{config.buildah} is not there on {node}", "an administrator installs buildah on the nodes")
    _try_to_become_root()
    with _room() as room:
        (room / "apt").write_text(_APT_TEXT, "ascii")
        (room / "registries.conf").write_text(registries(config.insecure_registries), "utf-8")
        base = [config.buildah, "--root", f"{room}/store", "--runroot", f"{room}/run", "--storage-driver", "vfs"]
        words = [word for argument in todo.arguments for word in ("--build-arg", argument)]
        words += ["--isolation", "chroot", "--format", "oci", "--volume", f"{room}/apt:{_APT}:ro"]
        _run([*base, "build", *words, "--file", todo.file, "--tag", _TAG, todo.context], room, "the build")
        _run([*base, "push", "--quiet", _TAG, f"oci-archive:{archive}"], room, "writing the image")


def registries(insecure: Sequence[str], site: Path = _SITE_REGISTRIES) -> str:
    """Return the site's registries.conf, with Docker Hub for names without a registry unless it says otherwise."""
    try:
        text = site.read_text("utf-8")
        said = tomllib.loads(text)
    except (OSError, ValueError):
        text, said = "", {}
    head = "" if "unqualified-search-registries" in said else 'unqualified-search-registries = ["docker.io"]\n'
    known = {entry.get("location") for entry in said.get("registry", []) if isinstance(entry, dict)}
    more = [f'[[registry]]\nlocation = "{name}"\ninsecure = true\n' for name in insecure if name not in known]
    return "\n".join([head + text, *more])


@contextlib.contextmanager
def _room() -> Iterator[Path]:
    """Give a fresh directory on this machine, and remove it as root of the namespace, whatever modes are in it."""
    room = tempfile.mkdtemp(prefix="piolet-build-")
    try:
        yield Path(room)
    finally:
        with contextlib.suppress(ImageError):
            _run(["rm", "-rf", room], Path(room), "removing what was built with")


def _run(words: list[str], room: Path, what: str) -> None:
    variables = {
        "_CONTAINERS_USERNS_CONFIGURED": "done",
        "_CONTAINERS_ROOTLESS_UID": str(os.getuid()),
        "CONTAINERS_REGISTRIES_CONF": f"{room}/registries.conf",
        **os.environ,
        "TMPDIR": str(room),
    }
    try:
        # What it says is progress; standard output is for what comes of it.
        done = subprocess.run(
            words, check=False, env=variables, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=become_root
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(f"{what} cannot be started: {error}") from None
    if done.returncode:
        raise ImageError(f"{what} failed with status {done.returncode}", "what it said is above")


def _try_to_become_root() -> None:
    """Raise ImageError if users may not: buildah would say it less well."""
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            become_root()
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        sentence = f"you cannot become root of a user namespace on {os.uname().nodename}: {os.strerror(code)}"
        raise ImageError(sentence, usernamespaces.hint())


def become_root() -> None:
    """Become root of a user namespace of one id, one's own, with a mount namespace and the filter. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    linux.unshare(linux.CLONE_NEWNS)
    pretendroot.install()
