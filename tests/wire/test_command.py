"""command_run: a signal that would end srun ends the command, however srun keeps it from itself."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# As srun: `blocked` as Slurm 22.05 does while its plugins work, `noted` as 26.05 does, `plain` as nobody does.
PARENT = """
import importlib.util, signal, sys
spec = importlib.util.spec_from_file_location("piolet_shims", sys.argv[1])
shims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shims)
ffi, lib = shims.ffi, shims.lib
if sys.argv[2] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
elif sys.argv[2] == "noted":
    signal.signal(signal.SIGINT, lambda *_: print("srun was told", flush=True))
    signal.signal(signal.SIGTERM, lambda *_: print("srun was told", flush=True))
elif sys.argv[2] == "early":
    # Delivered in fork(), before it returns.
    import ctypes, os
    signal.signal(signal.SIGINT, lambda *_: print("srun was told", flush=True))
    forked = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert ctypes.CDLL(None).__register_atfork(None, forked, None, None) == 0
elif sys.argv[2] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
elif sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
submission, failure = ffi.new("struct submission *"), ffi.new("struct failure *")
result = lib.submission_get(b"env", sys.argv[3].encode(), b"/c.toml", b"x.toml", True, submission, failure)
print("result", result, ffi.string(failure.message).decode(), flush=True)
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A piolet that says that it runs, and ends when somebody writes to its FIFO."""
    program = tmp_path / "piolet"
    os.mkfifo(tmp_path / "fifo")
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/ran\nexec cat {tmp_path}/fifo\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["blocked", "noted", "plain", "ignored"])
def test_a_signal_ends_the_command(
    shims: ModuleType, slow: Path, tmp_path: Path, how: str, number: signal.Signals
) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        ["env", "--default-signal=INT,TERM", sys.executable, "-c", PARENT, str(shims.__file__), how, str(slow)],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    ran = tmp_path / "ran"
    wait_until(lambda: ran.exists() and ran.read_text().endswith("\n"), 60, "the command")
    command = os.pidfd_open(int(ran.read_text()))
    process.send_signal(number)
    if how == "ignored" and number is signal.SIGINT:
        # As `srun &` in a script: the command is left alone.
        assert not select.select([command], [], [], 0.5)[0]
        (tmp_path / "fifo").write_text("")
    out, _ = process.communicate(timeout=60)
    assert select.select([command], [], [], 60)[0]  # with a parent that the signal has ended, a moment later
    os.close(command)
    if how == "ignored" and number is signal.SIGINT:
        assert "result -1" in out
        return
    if how == "noted":
        assert out.splitlines() == ["srun was told", "result -1 "]
    elif how == "plain":
        assert process.returncode in (-number, 1, 130) and "result 0" not in out


def test_a_signal_that_comes_while_the_command_is_started_ends_it(
    shims: ModuleType, slow: Path, tmp_path: Path
) -> None:
    """It was srun's alone, which does nothing while its plugins work, and the command went on."""
    done = subprocess.run(
        ["env", "--default-signal=INT", sys.executable, "-c", PARENT, str(shims.__file__), "early", str(slow)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=tmp_path, check=True, timeout=20,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["srun was told", "result -1 "]


def test_the_command_ignores_what_srun_was_started_to_ignore(shims: ModuleType, tmp_path: Path) -> None:
    """`nohup srun ... &` goes on when the terminal closes, the pull of its image included."""
    program = tmp_path / "piolet"
    program.write_text(f"#!/bin/sh\ngrep SigIgn /proc/$$/status > {tmp_path}/ran\n")
    program.chmod(0o755)
    command = ["env", "--default-signal", sys.executable, "-c", PARENT, str(shims.__file__), "nohup", str(program)]
    subprocess.run(
        command, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, cwd=tmp_path, check=True, timeout=20
    )
    ignored = int((tmp_path / "ran").read_text().split()[1], 16)
    assert ignored & 1 << signal.SIGHUP - 1
    assert not ignored & 1 << signal.SIGCHLD - 1


def test_a_command_that_a_signal_ended_is_said(shims: ModuleType, tmp_path: Path) -> None:
    """Not by the user: by a lack of memory, or a fault."""
    program = tmp_path / "piolet"
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    command = [sys.executable, "-c", PARENT, str(shims.__file__), "plain", str(program)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, check=True, timeout=20, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == f"result -1 {program} was ended by signal 9\n"
