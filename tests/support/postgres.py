"""A PostgreSQL of the tests' own, on a socket in a directory of its own."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.waiting import wait_until


def programs() -> str | None:
    """Return the directory of PostgreSQL's programs, None where it is not installed."""
    for place in (*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), "/usr/pgsql/bin"):
        if os.access(f"{place}/initdb", os.X_OK):
            return place
    found = shutil.which("initdb")
    return os.path.dirname(found) if found else None


def account() -> pwd.struct_passwd:
    """Return whom it runs as, where this is root."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return pwd.getpwuid(os.getuid())


class Postgres:
    """One server; `url` is what SQLAlchemy takes."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.url = f"postgresql+psycopg://piolet@/postgres?host={top}"
        own = account()
        self._as = {"user": own.pw_uid, "group": own.pw_gid, "extra_groups": ()} if os.getuid() == 0 else {}
        if self._as:
            os.chown(top, own.pw_uid, own.pw_gid)
        self.call("initdb", "-D", str(top / "data"), "-A", "trust", "-U", "piolet", "--no-sync", "-E", "UTF8")
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, name: str, *arguments: str) -> None:
        """Run one of its programs, as its account."""
        done = subprocess.run(
            [f"{programs()}/{name}", *arguments], capture_output=True, text=True, cwd="/", check=False, **self._as
        )  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            f"{programs()}/postgres", "-D", str(self.top / "data"), "-k", str(self.top), "-c", "listen_addresses=",
            "-c", "unix_socket_permissions=0777", "-c", "max_connections=20", "-c", "shared_buffers=32MB",
        ]  # fmt: skip
        with (self.top / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._as
            )  # type: ignore[call-overload]
        wait_until(self._answers, what="PostgreSQL")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.top / "log").read_text()
        try:
            psycopg.connect(f"host={self.top} user=piolet dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End it and all its processes as a power cut does, and wait until their memory is free."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()
        for child in children:
            wait_until(lambda child=child: not os.path.exists(f"/proc/{child}"), what="the end of a process")  # type: ignore[misc]

    def empty(self) -> None:
        """Remove all tables."""
        with psycopg.connect(f"host={self.top} user=piolet dbname=postgres", autocommit=True) as connection:
            connection.execute("drop schema public cascade")
            connection.execute("create schema public")

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Yield one that runs."""
    with tempfile.TemporaryDirectory(prefix="piolet-pg-") as name:
        top = Path(name)
        top.chmod(0o755)
        server = Postgres(top)
        server.start()
        try:
            yield server
        finally:
            server.stop()
