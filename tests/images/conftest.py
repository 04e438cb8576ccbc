"""A registry, a running image service under an account of its own, and users who ask it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import oci
from tests.support.oci import Entry
from tests.support.registry import Registry
from tests.support.waiting import wait_until

# Users must reach it: where they cannot reach the checkout, its build/ is a link to where they can.
PYTHON = str(Path(sys.executable).parent.resolve() / "python")
SERVICE, ALICE, BOB = 4242, 4301, 4302
SECRET = b"what only the service may read"
PROGRAMS = ("skopeo", "mksquashfs", "unsquashfs", "docker-registry", "zstd", "setpriv")
SERVE = "import sys; from piolet.cli.imaged import main; sys.exit(main(sys.argv[1:]))"
ASK = """
import json, pathlib, sys
from piolet.site import config
from piolet.base.errors import PioletError
from piolet.images import client
request, said = json.loads(sys.argv[2]), []
try:
    settings = config.load(pathlib.Path(sys.argv[1])).images
    info = client.find(request["reference"], settings, request["mode"], said.append)
    answer = {"digest": info.image.digest, "path": info.image.path, "watch": info.watch, "env": info.env}
except PioletError as error:
    answer = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
print(json.dumps({**answer, "said": said}))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


def needs_root() -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")


@contextlib.contextmanager
def new_room() -> Iterator[Path]:
    """Yield a folder that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="piolet-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that every user may enter."""
    with new_room() as path:
        yield path


@pytest.fixture
def registry(room: Path) -> Iterator[Registry]:
    """A registry that anybody may pull from."""
    running = Registry(room / "registry")
    yield running
    running.stop()


@pytest.fixture
def guarded(room: Path) -> Iterator[Registry]:
    """A registry that wants a password."""
    running = Registry(room / "guarded", {"alice": "secret-a", "bob": "secret-b"})
    yield running
    running.stop()


@dataclass
class Site:
    """A configuration, the service that serves it, and questions to it."""

    room: Path
    settings: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    walls: tuple[str, ...] | None = None
    """Of the cage: all that the kernel gives, or only these."""
    pauses: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Before a registry is asked again."""
    before: tuple[str, ...] = ()
    """A program that runs the service."""

    @property
    def store(self) -> Path:
        return self.room / "var/store"

    @property
    def config(self) -> Path:
        return self.room / "piolet.toml"

    @property
    def log(self) -> str:
        return (self.room / "service.log").read_text()

    def write_config(self) -> None:
        values = {
            "store": str(self.store),
            "socket": str(self.room / "var/s.sock"),
            "lease_stale_s": 3,
            **self.settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("[images]\n" + "\n".join(lines) + "\n")

    def start(self) -> None:
        self.write_config()
        (self.room / "var").mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.room / "var", SERVICE, SERVICE)
        with (self.room / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, *become(SERVICE), *self.python(SERVE), "--config", self.config],
                env=environment(),
                stderr=log,
                cwd="/",
            )
        count = self.log.count("listening at")
        wait_until(lambda: self.log.count("listening at") > count or not self.alive(), what="the service's start")
        assert self.alive(), self.log

    def python(self, code: str) -> list[str]:
        """Return the start of a command that runs `code`, in which a cage has `walls`, and no try waits for long."""
        code = f"jobs.PAUSES_S = {self.pauses!r}\n" + code
        if self.walls is not None:
            code = f"jobs.WALLS = {self.walls!r}\n" + code
        code = "from piolet.images import jobs\n" + code
        return [PYTHON, "-c", code]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            self.process.wait()

    def begin(self, uid: int, reference: str, mode: str = "pull", **more: str) -> subprocess.Popen[bytes]:
        """Start asking for an image as `uid`."""
        request = json.dumps({"reference": reference, "mode": mode})
        return subprocess.Popen(
            [*become(uid), *self.python(ASK), str(self.config), request],
            env=environment() | more,
            stdout=subprocess.PIPE,
            cwd="/",
        )

    def ask(self, uid: int, reference: str, mode: str = "pull", **more: str) -> dict[str, Any]:
        """Ask for an image as `uid`; return the answer, or the error."""
        return finish(self.begin(uid, reference, mode, **more))

    def piolet(self, uid: int, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the piolet command as `uid`."""
        code = "import sys; from piolet.cli.main import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [*become(uid), *self.python(code), "--config", str(self.config), *words],
            env=environment() | more,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            cwd="/",
        )

    def leftovers(self) -> list[str]:
        """Return temporary files and leases of the store; the heartbeat of a living service is neither."""
        found = [path.name for path in (self.store / "tmp").iterdir()]
        return found + [path.name for path in (self.store / "leases").iterdir() if path.suffix != ".process"]

    def images(self) -> list[str]:
        return sorted(path.name for path in self.store.glob("*.sqsh"))


def become(uid: int) -> list[str]:
    """Return the start of a command that runs as `uid`, who needs no account."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def finish(process: subprocess.Popen[bytes], timeout: float = 60) -> dict[str, Any]:
    out, _ = process.communicate(timeout=timeout)
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.fixture
def site(room: Path) -> Iterator[Site]:
    """A running service."""
    made = Site(room)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def counted(room: Path) -> Iterator[Callable[[], int]]:
    """A mksquashfs at `room/mksquashfs`, and how often it was run: the kernel tells, as it can write nothing there."""
    script = room / "mksquashfs"
    script.write_text('#!/bin/sh\nexec /usr/bin/mksquashfs "$@"\n')
    script.chmod(0o755)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(watch, os.fsencode(script), 0x20) > 0, "IN_OPEN"
    opened = 0

    def times() -> int:
        nonlocal opened
        with contextlib.suppress(BlockingIOError):
            while data := os.read(watch, 65536):
                opened += len(data) // 16  # an event of a file has no name
        return opened

    subprocess.run([script, "-version"], stdout=subprocess.DEVNULL, check=False)
    once = times()
    assert once
    yield lambda: (times() - once) // once
    os.close(watch)


@pytest.fixture
def image(room: Path) -> Path:
    """A small image of two layers."""
    return small_image(room)


def small_image(room: Path) -> Path:
    oci.build(
        room / "image",
        [[oci.folder("bin"), oci.file("bin/tool", b"tool", 0o755), oci.file("gone")], [oci.whiteout("gone")]],
        settings={"Env": ["PATH=/bin", "A=b=c"], "Entrypoint": ["/bin/tool"], "WorkingDir": "/srv"},
    )
    return room / "image"


@dataclass
class Place:
    """Where alice imports to: the image service, or a store of her own."""

    site: Site
    store: Path
    more: dict[str, str]
    victims: list[Path]

    def bring(
        self, entries: list[Entry] | bytes, *words: str, form: int = tarfile.PAX_FORMAT
    ) -> subprocess.CompletedProcess[str]:
        path = self.site.room / "a.tar"
        path.write_bytes(entries if isinstance(entries, bytes) else oci.tar(entries, form))
        return self.site.piolet(ALICE, "image", "import", *(words or (f"oci-archive:{path}",)), **self.more)

    def listing(self) -> dict[str, Any]:
        """Return mode, size, owner, time and links of everything in the store, in the home and beside it."""
        found: dict[str, Any] = {}
        for top in (self.store, self.site.room / "home", self.site.room / "secret"):
            for path in [top, *top.rglob("*")]:
                if path.parent.name not in ("leases", "tmp") and path.name not in ("leases", "tmp"):
                    seen = path.lstat()
                    target = os.readlink(path) if path.is_symlink() else ""
                    time = 0 if path.is_dir() else seen.st_mtime_ns
                    found[str(path)] = (
                        seen.st_mode,
                        seen.st_size if not path.is_dir() else 0,
                        seen.st_uid,
                        time,
                        target,
                    )
        return found


@pytest.fixture(scope="module", params=["service", "own store"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A store with a public image in it, and a file of the account that imports; all tests of a file bring to it."""
    with new_room() as room, contextlib.ExitStack() as stack:
        site = Site(room)
        stack.callback(site.stop)
        site.start()
        registry = Registry(room / "registry")
        stack.callback(registry.stop)
        yield new_place(request.param, site, registry.push(small_image(room), "demo:1"))


def new_place(kind: str, site: Site, reference: str) -> Place:
    """Return a store into which alice has pulled an image, the service's or her own."""
    room = site.room
    home = room / "home"
    home.mkdir()
    (home / ".profile").write_text("mine")
    secret = room / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    os.chown(secret, SERVICE, SERVICE)
    more, store = {"HOME": str(home)}, site.store
    if kind == "own store":
        store = home / "images"
        more["EDF_IMAGESTORE"] = str(store)
        os.chown(secret, ALICE, ALICE)
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", home], check=True)
    pulled = site.ask(ALICE, reference, **more)
    name = pulled["digest"].replace(":", "-")
    return Place(site, store, more, [store / f"{name}.sqsh", store / f"{name}.access", home / ".profile"])
