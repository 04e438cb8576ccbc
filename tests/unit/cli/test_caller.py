"""What `piolet env submit` learns from the srun that calls it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from piolet.cli import caller
from piolet.environment.definition import Definition
from piolet.images.info import Image
from piolet.slurm import srunwords
from piolet.submission.dependencies import Host

from tests.support.waiting import wait_until

IMAGE = Image("a/b:1", "site", "sha256:" + "a" * 64)
ROOT = Path(__file__).resolve().parents[3]


def words(*given: str) -> srunwords.Words:
    return srunwords.parse(["srun", *given])


@contextmanager
def process(name: str, *given: str) -> Iterator[int]:
    """A process whose words these are."""
    with subprocess.Popen([name, "30", *given], executable="/bin/sleep", stderr=subprocess.DEVNULL) as child:
        try:
            # Its words are there a moment after it has begun.
            wait_until(Path(f"/proc/{child.pid}/cmdline").read_bytes, what="the process")
            yield child.pid
        finally:
            child.kill()


def test_the_words_of_an_srun() -> None:
    with process("/usr/bin/srun") as pid:
        found = caller.words_of(pid)
    assert found is not None
    assert found.rest == ("30",)
    with process("/usr/bin/sbatch") as pid:
        assert caller.words_of(pid) is None
    assert caller.words_of(2**22 + 1) is None


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        (["--chdir=/x", "cmd"], {}, "/x"),
        (["--chdir", "sub", "cmd"], {}, "/here/sub"),
        (["-D/x", "cmd", "-D", "/app"], {}, "/x"),
        (["-vD", "/x", "cmd"], {}, "/x"),
        (["cmd", "-D", "/app", "--chdir=/app"], {}, None),
        (["cmd"], {"SLURM_WORKING_DIR": "/v"}, "/v"),
        (["--chdir=/x", "cmd"], {"SLURM_WORKING_DIR": "/v"}, "/x"),
        (["cmd"], {}, None),
    ],
)
def test_where_srun_was_told_to_start(given: list[str], variables: dict[str, str], expected: str | None) -> None:
    host = Host(variables, "/here")
    assert caller.chdir(words(*given), host) == expected
    assert caller.chdir(None, host) is None
    assert "SLURM_WORKING_DIR" in {dependency.name for dependency in host.dependencies}


def test_the_definition_of_the_job(tmp_path: Path) -> None:
    definition = Definition("x.toml", image=IMAGE)
    job = {
        "SLURM_PIOLET_ENVIRONMENT": definition.to_json().decode(),
        "SLURM_PIOLET_REQUEST": "x.toml",
        "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment": "x.toml",
    }
    assert caller.inherited("x.toml", words("cmd"), job) == definition
    assert caller.inherited("y.toml", words("cmd"), job) is None
    assert caller.inherited("x.toml", words("--environment=x.toml", "cmd"), job) is None
    assert caller.inherited("x.toml", None, job) is None
    for name in job:
        assert caller.inherited("x.toml", words("cmd"), {key: job[key] for key in job if key != name}) is None
    plugin = (ROOT / "spank" / "environment.c").read_text()
    assert all(f'"{name}"' in plugin for name in job)
