"""`piolet env` and what the command makes of errors, with an image client put in its place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet import images
from piolet.base.errors import ImageError, UsageError
from piolet.cli import main as cli
from piolet.environment.definition import from_json
from piolet.images.failures import RegistryUnreachable
from piolet.images.info import Image, ImageInfo
from piolet.site import config
from piolet.submission import cache

DIGEST = "sha256:" + "b" * 64


class Client(types.ModuleType):
    """Stands for piolet.images.client; `failure` is raised when it is set."""

    def __init__(self) -> None:
        super().__init__("piolet.images.client")
        self.failure: Exception | None = None
        self.asked: list[tuple[str, bool]] = []
        self.said = ["pulling: 1 of 1 layers"]

    def resolve(
        self, reference: str, settings: config.Config, *, pull: bool, progress: Callable[[str], None]
    ) -> ImageInfo:
        """Answer for one image."""
        self.asked.append((reference, pull))
        if self.failure is not None:
            raise self.failure
        for text in self.said if pull else ():
            progress(text)
        return ImageInfo(Image(reference, "site", DIGEST), env={"PATH": "/image/bin"})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    fake = Client()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(images, "client", fake, raising=False)
    return fake


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    for name in ("XDG_CACHE_HOME", "EDF_PATH", "EDF_IMAGESTORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "x.toml").write_text('image = "img"\nmounts = ["/tmp"]\n[env]\nA = "${PATH}"\n')
    (tmp_path / "bad.toml").write_text('imgae = "img"\n')
    age(tmp_path)
    return tmp_path


def age(directory: Path) -> None:
    """Wait until the files of `directory` count as settled; a change time cannot be set back."""
    import time

    newest = max(path.stat().st_ctime_ns for path in directory.glob("*.toml"))
    while time.time_ns() - newest < 60_000_000:
        pass


Captured = pytest.CaptureFixture[str]


def test_check(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "./x.toml"]) == 0
    assert capsys.readouterr() == ("./x.toml is valid: image img, 1 mount\n", "")


def test_check_of_a_bad_file(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "bad.toml"]) == 1
    assert capsys.readouterr() == (
        "",
        f"piolet: error: {work}/bad.toml:1:1: unknown key 'imgae'\n"
        "  imgae = \"img\"\n  ^^^^^\nhint: did you mean 'image'?\n",
    )


def test_check_without_an_image(work: Path, capsys: Captured) -> None:
    (work / "e.toml").write_text("")
    assert cli.main(["env", "check", "e.toml"]) == 0
    assert capsys.readouterr().out == "e.toml is valid: no image, runs on the host, 0 mounts\n"


def test_render(work: Path, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "render", "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    definition = from_json(out.encode().removesuffix(b"\n"))
    assert definition.set_env == {"A": "/image/bin", "PATH": "/image/bin"}
    assert out.encode() == definition.to_json() + b"\n"
    assert client.asked == [("img", False)]


def test_explain(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "explain", "x.toml"]) == 0
    assert f"# {work}/x.toml:2, written" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["check", "render", "explain"])
def test_a_registry_that_is_down_is_a_warning(
    work: Path, client: Client, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    client.failure = RegistryUnreachable("cannot reach registry.example")
    assert cli.main(["env", action, "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert err == (
        "piolet: warning: cannot reach registry.example; the digest and variables of the image are not known\n"
    )
    if action == "render":
        assert json.loads(out)["image"] == {"digest": None, "path": None, "reference": "img", "store": "site"}


def test_an_image_that_does_not_exist_is_an_error(work: Path, client: Client, capsys: Captured) -> None:
    client.failure = ImageError("there is no image 'img'")
    assert cli.main(["env", "check", "x.toml"]) == 1
    assert f"piolet: error: {work}/x.toml:1:9: there is no image 'img'" in capsys.readouterr().err


def test_offline_asks_nobody(work: Path, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "render", "--offline", "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["image"]["digest"] is None
    assert err.startswith("piolet: warning: the image img was not looked at (--offline)")
    assert client.asked == []


def test_warnings_go_to_standard_error(work: Path, capsys: Captured) -> None:
    (work / "h.toml").write_text('image = "i"\n[annotations]\ncom.hooks.ssh.enabled = "true"\n')
    assert cli.main(["env", "check", "h.toml"]) == 0
    out, err = capsys.readouterr()
    assert out == "h.toml is valid: image i, 0 mounts\n"
    assert err == "piolet: warning: the hook com.hooks.ssh is not installed here; ignored\n"


def submitted(work: Path, *options: str, request: str = "./x.toml") -> tuple[int, bytes, list[Path]]:
    descriptor = os.memfd_create("record")
    try:
        status = cli.main([*options, "env", "submit", "--record-fd", str(descriptor), request])
        record = os.pread(descriptor, 1 << 21, 0)
    finally:
        os.close(descriptor)
    return status, record, list((work / "home/.cache/piolet/env").glob("*"))


def test_submit(work: Path, client: Client, capsys: Captured) -> None:
    status, record, cached = submitted(work)
    assert status == 0
    assert client.asked == [("img", True)]
    assert capsys.readouterr() == ("", "pulling: 1 of 1 layers\n")
    expected = cache.path_of(os.environ, str(work), "./x.toml", "", os.getuid())
    assert [str(path) for path in cached] == [expected]
    assert cached[0].read_bytes() == record
    assert b"./x.toml\0" + str(work).encode() + b"\0" in record
    for name in (b"HOME\0", b"EDF_IMAGESTORE\0", str(config.DEFAULT_PATH).encode() + b"\0"):
        assert name in record
    start = record.index(b'{"annotations"')
    assert from_json(record[start:]).mounts[0].source == "/tmp"


def test_submit_as_the_plugin_calls_it(work: Path) -> None:
    (work / "-x").mkdir()
    (work / "-x/y.toml").write_text("")
    status, record, _ = submitted(work, request="-x/y.toml")
    assert (status, record) == (2, b"")
    descriptor = os.memfd_create("record")
    try:
        assert cli.main(["env", "submit", "--record-fd", str(descriptor), "--", "-x/y.toml"]) == 0
        assert os.fstat(descriptor).st_size > 0
    finally:
        os.close(descriptor)


def test_submit_of_a_bad_file_writes_nothing(work: Path, capsys: Captured) -> None:
    assert submitted(work, request="./bad.toml") == (1, b"", [])
    assert "unknown key 'imgae'" in capsys.readouterr().err


def test_submit_with_a_registry_that_is_down_is_an_error(work: Path, client: Client, capsys: Captured) -> None:
    client.failure = RegistryUnreachable("cannot reach registry.example")
    assert submitted(work) == (1, b"", [])
    assert "cannot reach registry.example" in capsys.readouterr().err


def test_a_cached_record_repeats_the_warning(work: Path) -> None:
    (work / "x.toml").write_text('image = "i"\n[annotations]\ncom.hooks.ssh.enabled = "true"\n')
    age(work)
    status, record, cached = submitted(work)
    assert (status, len(cached)) == (0, 1)
    assert b"piolet: warning: the hook com.hooks.ssh is not installed here; ignored\0" in record


def test_submit_shows_a_long_pull_in_few_lines(work: Path, client: Client, capsys: Captured) -> None:
    client.said = [f"pulling: \x1b[2J{number} of 1000 MiB" for number in range(1001)]
    assert submitted(work)[0] == 0
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) < 10 and shown[-1] == "pulling: ?[2J1000 of 1000 MiB"


def test_submit_does_not_cache_a_file_that_changed_just_now(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = (work / "x.toml").stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: changed + 1)
    status, _, cached = submitted(work)
    assert (status, cached) == (0, [])


def test_submit_does_not_cache_for_another_configuration(work: Path) -> None:
    (work / "p.toml").write_text("")
    status, record, cached = submitted(work, "--config", f"{work}/p.toml")
    assert (status, cached) == (0, [])
    assert f"{work}/p.toml".encode() in record


def test_submit_without_a_place_for_a_cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    status, record, _ = submitted(work)
    assert status == 0
    assert record


def test_submit_with_too_many_dependencies_has_a_record_and_no_cache(work: Path, capsys: Captured) -> None:
    listing = "".join(f'V{i} = "${{N{i}:-}}"\n' for i in range(4200))
    (work / "x.toml").write_text("[env]\n" + listing)
    age(work)
    status, record, cached = submitted(work)
    assert (status, cached) == (0, [])
    assert len(from_json(record[record.index(b'{"annotations"') :]).unset_env) == 4200


def test_a_file_that_includes_itself(work: Path, capsys: Captured) -> None:
    (work / "x.toml").write_text('base_environment = "x.toml"\n')
    assert cli.main(["env", "check", "x.toml"]) == 1
    assert "goes in a circle" in capsys.readouterr().err


def test_a_wrong_command_line(work: Path, capsys: Captured) -> None:
    for words in (["env"], [], ["env", "check"], ["nope"], ["env", "submit", "--record-fd", "x", "r"]):
        assert cli.main(words) == 2, words
        assert "usage: piolet" in capsys.readouterr().err


def test_help_names_every_command(capsys: Captured) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert cli.main(["env", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("check", "render", "explain", "submit"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("piolet ")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("piolet.cli.env.run", fail)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UsageError("not so"), 2, "piolet: error: not so\n"),
        (KeyboardInterrupt(), 130, "piolet: error: interrupted\n"),
        (
            ValueError("odd"),
            1,
            "piolet: error: something unexpected happened: ValueError: odd\n"
            "hint: --verbose shows where; please report it\n",
        ),
    ],
)
def test_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException, status: int, text: str
) -> None:
    raising(monkeypatch, error)
    assert cli.main(["env", "check", "x"]) == status
    assert capsys.readouterr().err == text


def test_verbose_gives_the_traceback(work: Path, capsys: Captured) -> None:
    assert cli.main(["--verbose", "env", "check", "nope"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "there is no environment 'nope'" in err


def test_a_configuration_that_is_wrong(work: Path, capsys: Captured) -> None:
    assert cli.main(["--config", f"{work}/none.toml", "env", "check", "x.toml"]) == 1
    assert capsys.readouterr().err == f"piolet: error: the configuration file {work}/none.toml does not exist\n"


def command(work: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "piolet.cli.main", *words],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        cwd=work,
    )


def test_the_command_as_a_process(work: Path) -> None:
    good = command(work, "env", "check", "--offline", "x.toml")
    assert (good.returncode, good.stdout) == (0, b"x.toml is valid: image img, 1 mount\n")
    assert command(work, "env", "check", "bad.toml").returncode == 1
    assert command(work, "env").returncode == 2


def test_a_reader_that_went_away_is_no_noise(work: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "piolet.cli.main", "env", "explain", "--offline", "x.toml"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
            cwd=work,
        )
    finally:
        os.close(writer)
    assert run.returncode == 141
    assert run.stderr.count(b"\n") == 1
    assert b"warning" in run.stderr


def test_an_interrupt_while_modules_are_loaded(work: Path) -> None:
    code = """
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "piolet.site.config":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has tests ignore it
from piolet.cli.start import main
sys.exit(main())
"""
    run = started(work, code, {})
    assert (run.returncode, run.stderr) == (-signal.SIGINT, b"")


def test_a_terminal_that_lacks_a_character(work: Path) -> None:
    (work / "x.toml").write_text('[env]\nA = "\u65e5"\n')
    run = started(
        work, "import sys; from piolet.cli.start import main; sys.exit(main())", {"PYTHONIOENCODING": "ascii"}
    )
    assert (run.returncode, run.stderr) == (0, b"") and b'A = "\\u65e5"' in run.stdout


@pytest.mark.parametrize(
    ("redirect", "status", "text"),
    [
        (">&-", 0, b""),
        ("2>&-", 0, b""),
        (">/dev/full", 1, b"piolet: error: cannot write all of the output: No space left on device\n"),
    ],
)
def test_an_output_that_takes_nothing(work: Path, redirect: str, status: int, text: bytes) -> None:
    (work / "x.toml").write_text('[env]\nA = "1"\n')
    code = "import sys; from piolet.cli.start import main; sys.exit(main())"
    command = f"exec {sys.executable} -c '{code}' env explain --offline ./x.toml {redirect}"
    environ = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    run = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60, check=False, env=environ, cwd=work)
    assert (run.returncode, run.stderr) == (status, text)


def started(work: Path, code: str, environ: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, "env", "explain", "--offline", "./x.toml"],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environ},
        cwd=work,
    )


def test_a_working_directory_that_is_gone(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    (work / "gone").mkdir()
    monkeypatch.chdir(work / "gone")
    (work / "gone").rmdir()
    assert cli.main(["env", "check", "x.toml"]) == 1
    assert "cannot tell the working directory" in capsys.readouterr().err


def test_control_characters_of_a_file_do_not_reach_the_terminal(work: Path, capsys: Captured) -> None:
    (work / "x.toml").write_text('"a\\u001b[2J\\u009b" = 1\n')
    assert cli.main(["env", "check", "x.toml"]) == 1
    err = capsys.readouterr().err
    assert "unknown key 'a?[2J?'" in err
    assert "\x1b" not in err


def test_submit_refuses_what_a_node_would_refuse(
    work: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    info = ImageInfo(Image("img", "site", DIGEST), env={"B": "x\0y"})
    monkeypatch.setattr(client, "resolve", lambda *_, **__: info)
    assert submitted(work) == (1, b"", [])
    assert "the definition has a value that should be a string" in capsys.readouterr().err
