"""The file that is slow to read: its bytes are another's, and reads take what they are told to take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIMULATOR = Path(__file__).with_name("slow_fs.py")


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="it takes root, and FUSE")
def test_reads_take_what_they_are_told_to_take(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    file, backing, delay = tmp_path / "file", tmp_path / "backing", tmp_path / "delay"
    backing.write_bytes(content)
    file.write_bytes(b"")
    delay.write_text("0")
    words = [sys.executable, "-I", *map(str, (SIMULATOR, file, backing, delay))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "mounted\n"
            seen = Path(f"/proc/{server.pid}/root{file}")
            assert seen.read_bytes() == content
            assert file.read_bytes() == b""  # of everybody else nothing is changed
            delay.write_text("0.2")
            began = time.monotonic()
            with seen.open("rb", buffering=0) as opened:
                assert os.pread(opened.fileno(), 4096, 200_000) == content[200_000:204_096]
            assert time.monotonic() - began >= 0.2
        finally:
            server.kill()
