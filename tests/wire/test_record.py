"""The record between `piolet env submit` and the shim in srun: when a cached one is taken, and when not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.base.files import Stamp
from piolet.environment import pinned
from piolet.environment.definition import Definition
from piolet.submission import record as records
from piolet.submission.dependencies import Dependency, Kind

from tests.wire.messages import lib as numbers
from tests.wire.messages import record

DEFINITION = b'{"version":1}'


class Shim:
    """submission_get with a command that writes what the test put into a file."""

    def __init__(self, shims: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._shims = shims
        self.directory = directory
        self.fresh = directory / "fresh.rec"
        self.command = directory / "piolet"
        self.ran = directory / "ran"
        self.command.write_text(f"#!/bin/sh\necho ran >> {self.ran}\ncat {self.fresh} >&3\n")
        self.command.chmod(0o755)
        (directory / "cache/piolet/env").mkdir(parents=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        monkeypatch.chdir(directory)

    def request(self) -> tuple[int, str, bytes]:
        """Return the result, the error message and the definition that submission_get gives for x.toml."""
        ffi, lib = self._shims.ffi, self._shims.lib
        submission, failure = ffi.new("struct submission *"), ffi.new("struct failure *")
        result = lib.submission_get(
            b"env", str(self.command).encode(), b"/c.toml", b"x.toml", True, submission, failure
        )
        definition = b"" if result else bytes(ffi.buffer(submission.definition, submission.definition_length))
        lib.submission_free(submission)
        return result, ffi.string(failure.message).decode(), definition

    def runs(self) -> int:
        """Return how often the command was run."""
        return len(self.ran.read_text().splitlines()) if self.ran.exists() else 0

    def cache(self, data: bytes) -> Path:
        """Put a record where the shim looks for one."""
        key = self._shims.lib.record_key(b"x.toml", os.getcwd().encode(), b"/c.toml", os.geteuid())
        path = self.directory / f"cache/piolet/env/{key:016x}.rec"
        path.write_bytes(data)
        path.chmod(0o600)
        return path


@pytest.fixture
def shim(shims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """A shim in a directory of its own."""
    return Shim(shims, tmp_path, monkeypatch)


def of_request(*more: tuple[int, bytes, bytes], request: bytes = b"x.toml") -> bytes:
    """Return a record for x.toml in the working directory with further dependencies."""
    return record(DEFINITION, [(numbers.PIOLET_DEP_REQUEST, request, os.getcwd().encode()), *more])


def test_a_good_cache_starts_no_process(shim: Shim) -> None:
    """Every dependency holds: the definition comes from the file."""
    (shim.directory / "x.toml").write_text("image = 'x'")
    shim.cache(
        of_request(
            (numbers.PIOLET_DEP_FILE, b"x.toml", b""),
            (numbers.PIOLET_DEP_EXISTS, b"/tmp", b""),
            (numbers.PIOLET_DEP_ABSENT, b"/no/such/path", b""),
            (numbers.PIOLET_DEP_VARIABLE, b"XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"].encode()),
            (numbers.PIOLET_DEP_UNSET, b"NOT_SET_AT_ALL", b""),
        )
    )
    assert shim.request() == (0, "", DEFINITION)
    assert shim.runs() == 0


@pytest.mark.parametrize(
    "stale",
    [
        (numbers.PIOLET_DEP_EXISTS, b"/no/such/path", b""),
        (numbers.PIOLET_DEP_ABSENT, b"/tmp", b""),
        (numbers.PIOLET_DEP_VARIABLE, b"HOME", b"another"),
        (numbers.PIOLET_DEP_UNSET, b"XDG_CACHE_HOME", b""),
        (99, b"unknown kind", b""),
    ],
)
def test_a_stale_cache_is_rendered_anew(shim: Shim, stale: tuple[int, bytes, bytes]) -> None:
    """One dependency does not hold: the command runs, and its record is taken."""
    shim.cache(of_request(stale))
    shim.fresh.write_bytes(of_request())
    assert shim.request() == (0, "", DEFINITION)
    assert shim.runs() == 1


def test_a_changed_file_is_rendered_anew(shim: Shim) -> None:
    """Also when its size is what it was."""
    file = shim.directory / "x.toml"
    file.write_text("image = 'a'")
    shim.cache(of_request((numbers.PIOLET_DEP_FILE, str(file).encode(), b"")))
    file.write_text("image = 'b'")
    shim.fresh.write_bytes(of_request())
    shim.request()
    assert shim.runs() == 1


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_cache_that_others_can_write_is_ignored(shim: Shim, mode: int) -> None:
    """It says which image and mounts to use: only the user's own word counts."""
    shim.cache(of_request()).chmod(mode)
    shim.fresh.write_bytes(of_request())
    shim.request()
    assert shim.runs() == 1


def test_a_link_and_a_fifo_are_ignored(shim: Shim) -> None:
    """Neither is followed, and neither blocks."""
    path = shim.cache(b"")
    path.unlink()
    os.mkfifo(path)
    shim.fresh.write_bytes(of_request())
    assert shim.request()[0] == 0
    path.unlink()
    path.symlink_to(shim.fresh)
    assert shim.request()[0] == 0
    assert shim.runs() == 2


def test_rubbish_from_the_command_is_refused(shim: Shim) -> None:
    """Empty, too long, for another request, or with a NUL in the definition."""
    for data, expected in [
        (b"", "no record"),
        (b"x" * 2_000_000, "no record"),
        (b"x" * 100, "another version"),
        (of_request(request=b"y.toml"), "stale"),
        (of_request()[:-1], "another version"),
        (record(b"a\0b", [(numbers.PIOLET_DEP_REQUEST, b"x.toml", os.getcwd().encode())]), "belong to nothing"),
    ]:
        shim.fresh.write_bytes(data)
        result, message, _ = shim.request()
        assert result == -1
        assert expected in message


def test_a_command_that_fails_has_spoken_itself(shim: Shim) -> None:
    """The shim adds nothing to what the command said."""
    shim.command.write_text("#!/bin/sh\nexit 1\n")
    assert shim.request() == (-1, "", b"")


def test_a_command_that_is_missing(shim: Shim, capfd: pytest.CaptureFixture[str]) -> None:
    """The path is named."""
    shim.command.unlink()
    assert shim.request()[0] == -1
    assert f"piolet: error: cannot run {shim.command}" in capfd.readouterr().err


def test_the_key_is_the_one_that_python_computes(shims: ModuleType) -> None:
    """FNV-1a over directory, request and uid; the reference is computed here from its definition."""
    value = 0xCBF29CE484222325
    for byte in b"/home/a\0x.toml\0/c\x001000\0":
        value = (value ^ byte) * 0x100000001B3 % 2**64
    assert shims.lib.record_key(b"x.toml", b"/home/a", b"/c", 1000) == value


def test_a_warning_is_said_each_time(shim: Shim, capfd: pytest.CaptureFixture[str]) -> None:
    """The record repeats what the command said when it made it; a fresh record's command has said it itself."""
    data = of_request((numbers.PIOLET_DEP_NOTE, b"piolet: warning: no hook", b""))
    shim.fresh.write_bytes(data)
    assert shim.request()[0] == 0
    assert capfd.readouterr().err == ""
    shim.cache(data)
    assert shim.request()[0] == 0
    assert capfd.readouterr().err == "piolet: warning: no hook\n"


@pytest.mark.parametrize(
    ("since_s", "until_s", "runs"), [(-5, 60, 0), (-60, -5, 1), (5, 60, 1)], ids=["young", "old", "clock put back"]
)
def test_what_is_good_for_a_while_only(shim: Shim, since_s: float, until_s: float, runs: int) -> None:
    """A record of a vetting: it ends, and a clock that was put back does not make it good for ever."""
    now = time.time()
    span = Stamp(0, 0, 0, int((now + since_s) * 1e9), int((now + until_s) * 1e9))
    packed = records.pack(DEFINITION, "x.toml", os.getcwd(), [Dependency(Kind.UNTIL, "the vetting", stamp=span)])
    assert packed is not None
    shim.cache(packed)
    shim.fresh.write_bytes(of_request())
    assert shim.request() == (0, "", DEFINITION)
    assert shim.runs() == runs


def test_a_steps_note_is_called_as_python_reads_it(
    shims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun leaves a link of the name that `piolet env show` looks for; of a requeued job, the last one counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)
    assert not shims.lib.submission_note(12, 3, b"{}"), "there is no cache"
    (tmp_path / "piolet/env").mkdir(parents=True)
    for definition in (Definition(request="a"), Definition(request="b", set_env={"A": "ü" * 9000})):
        assert shims.lib.submission_note(12, 3, definition.to_json())
        assert os.readlink(tmp_path / "piolet/env/12.3.job") == pinned.hash_of(definition.to_json())
        pinned.keep(os.environ, b"", definition)
        assert pinned.find(os.environ, "12")[0].definition == definition


@pytest.mark.parametrize("name", ["alps", "rigi.2", "4", "x" * 300, ".job", ""])
def test_a_steps_note_has_the_clusters_name(
    shims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What srun's environment calls the cluster is cut to what fits; an empty name is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", name)
    definition = Definition(request="a")
    pinned.keep(os.environ, b"", definition)
    assert shims.lib.submission_note(12, 3, definition.to_json())
    assert [path.name for path in (tmp_path / "piolet/env").glob("*.job")] == [f"12.3.{name[:100]}.job"]
    (found,) = pinned.find({**os.environ, "SLURM_CLUSTER_NAME": name}, "12", lambda _: name)
    assert (found.step, found.definition) == ("12.3", definition)
    if name:
        with pytest.raises(EnvironmentFileError):
            pinned.find(os.environ, "12", lambda _: "another")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b"])
def test_a_name_that_is_a_path_leaves_no_note(
    shims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not outside of the cache either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", name)
    (tmp_path / "piolet/env").mkdir(parents=True)
    (tmp_path / "piolet/x.job").touch()
    assert not shims.lib.submission_note(12, 3, b"{}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["env", "piolet", "x.job"]
