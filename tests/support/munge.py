"""Private munged's of one key: a cluster's machines, each with an address of its own, on one machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MUNGED = shutil.which("munged") or "/usr/sbin/munged"


@contextlib.contextmanager
def munged(*origins: str, key: bytes = b"k" * 64, threads: int = 2) -> Iterator[list[str]]:
    """Start one munged for each IPv4 address; yield their sockets, which everybody may use."""
    with tempfile.TemporaryDirectory(prefix="piolet-munge-") as name:
        top = Path(name)
        top.chmod(0o755)
        running: list[subprocess.Popen[bytes]] = []
        sockets = []
        try:
            for number, origin in enumerate(origins):
                place = top / str(number)
                place.mkdir()
                (place / "key").write_bytes(key)
                (place / "key").chmod(0o600)
                sockets.append(str(place / "socket"))
                command = [
                    MUNGED, "--foreground", "--force", f"--socket={place}/socket", f"--key-file={place}/key",
                    f"--log-file={place}/log", f"--pid-file={place}/pid", f"--seed-file={place}/seed",
                    f"--origin={origin}", f"--num-threads={threads}",
                ]  # fmt: skip
                log = (place / "out").open("wb")
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
                log.close()
            for path, one in zip(sockets, running, strict=True):
                _wait(path, one)
            yield sockets
        finally:
            for one in running:
                one.terminate()
            for one in running:
                one.wait(10)


def _wait(path: str, process: subprocess.Popen[bytes]) -> None:
    from tests.support.waiting import wait_until

    def there() -> bool:
        assert process.poll() is None, (Path(path).parent / "out").read_text()
        return os.path.exists(path)

    wait_until(there, what="munged")
