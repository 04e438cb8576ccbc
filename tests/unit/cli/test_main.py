"""What the command makes of errors, of outputs that take nothing, and of interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.base.errors import UsageError
from piolet.cli import main as cli

from tests.unit.cli.conftest import Captured


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
