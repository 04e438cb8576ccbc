"""`piolet attach` and `piolet ssh`: which step and node, what they become, and what srun is not asked for in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.base.errors import UsageError
from piolet.cli import attached
from piolet.environment import pinned
from piolet.environment.definition import Definition
from piolet.images.info import Image
from piolet.slurm import srunwords
from piolet.submission.dependencies import Host

STEP = f"StepId={{}} UserId={os.getuid()} State=RUNNING NodeList={{}} Nodes=1"
OTHERS = f"StepId=12.0 UserId=bob({os.getuid() + 1}) State=RUNNING NodeList=n1"
BECOME = 'printf "%s\\n" "$(basename "$0")" "$@"; env | grep -c "^SLURM_NTASKS=" || true'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory, with commands that say what they were called with in bin/."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "ssh"):
        write(tmp_path, name, BECOME)
    return tmp_path


def write(home: Path, name: str, text: str) -> None:
    path = home / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def steps(home: Path, *lines: str) -> None:
    (home / "steps").write_text("\n".join([*lines, ""]))
    write(home, "scontrol", f"/bin/cat {home}/steps")


def piolet(home: Path, *words: str, path: str = ":/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    variables = {"HOME": str(home), "PATH": f"{home}/bin{path}", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "99"}
    command = [sys.executable, "-I", "-c", "from piolet.cli.main import main; import sys; sys.exit(main())", *words]
    return subprocess.run(
        command,
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def keep(home: Path, step: str, **more: object) -> None:
    """Do what submit does, and then srun's plugin."""
    image = Image("app:1", "site", "sha256:" + "c" * 64)
    definition = Definition("x", image=image, **more)  # type: ignore[arg-type]
    pinned.keep({"HOME": str(home)}, b"", definition)
    (home / f".cache/piolet/env/{step}.job").symlink_to(pinned.hash_of(definition.to_json()))


SRUN = ["srun", "--overlap", "--jobid=12", "-N1", "-n1", "-w"]


def test_it_becomes_srun(home: Path) -> None:
    """Without what its own job says of tasks; and the record for that srun is there."""
    steps(home, STEP.format("12.0", "n[3-4]"))
    done = piolet(home, "attach", "12.0", "--", "ls", "-l")
    assert done.stdout.splitlines() == [*SRUN, "n3", "--environment=job:12.0", "-u", "ls", "-l", "0"], done.stderr
    assert done.stderr == "piolet: on n3, one of n[3-4]; -w NODE chooses another\n"
    assert len(list((home / ".cache/piolet/env").glob("*.rec"))) == 1
    other = piolet(home, "attach", "-w", "n4", "job:12", "ls")
    assert other.stdout.splitlines() == [*SRUN, "n4", "--environment=job:12.0", "-u", "ls", "0"], other.stderr
    shell = piolet(home, "attach", "12")
    assert shell.stdout.splitlines()[8:11] == ["-u", "/bin/sh", "-c"] and 'exec "$SHELL"' in shell.stdout


def test_it_becomes_ssh(home: Path) -> None:
    steps(home, STEP.format("12.0", "n3"))
    keep(home, "12.0", annotations={"com.hooks.ssh.enabled": "true"})
    done = piolet(home, "ssh", "12", "-L", "1:localhost:2", "ls")
    lines = done.stdout.splitlines()
    proxy = f"ProxyCommand={' '.join(SRUN)} n3 --environment=job:12.0 -u -Q /run/piolet/ssh/serve"
    assert lines[:3] == ["ssh", "-o", proxy] and lines[-5:] == ["12.0.n3", "-L", "1:localhost:2", "ls", "0"], done
    keep(home, "13.0")
    steps(home, STEP.format("13.0", "n3"))
    refused = piolet(home, "ssh", "13.0")
    assert refused.returncode == 1 or refused.returncode == 2
    assert "the environment of step 13.0 has no SSH server" in refused.stderr and "piolet attach 13.0" in refused.stderr


def test_of_several_steps_the_one_with_a_container(home: Path) -> None:
    """By what srun has kept; one that is attached itself has none of its own."""
    steps(home, *(STEP.format(f"12.{number}", "n1") for number in range(3)))
    several = piolet(home, "attach", "12", "ls")
    assert several.returncode == 2 and "job 12 has several steps: 12.0, 12.1, 12.2" in several.stderr
    keep(home, "12.1")
    keep(home, "12.2", attach="12.1")
    assert "--environment=job:12.1" in piolet(home, "attach", "12", "ls").stdout


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        ([], ["12.0"], "no step 12.0 of job 12 runs now"),
        ([], ["12"], "no step of job 12 runs"),
        ([STEP.format("12.1", "n1")], ["12.0"], "those that do: 12.1"),
        ([OTHERS], ["12.0"], "job 12 is another user's"),
        ([STEP.format("12.0", "n1")], ["-w", "n2", "12.0"], "step 12.0 is not on n2"),
        ([STEP.format("12.0", "(null)")], ["12.0"], "Slurm does not say on which nodes step 12.0 is"),
        ([], ["x"], "'x' is no step"),
    ],
)
def test_what_cannot_be(home: Path, lines: list[str], words: list[str], said: str) -> None:
    steps(home, *lines)
    done = piolet(home, "attach", *words)
    assert done.returncode in (1, 2) and done.stdout == "" and said in done.stderr, done
    assert done.stderr.count("piolet: error:") == 1 and "\nhint: " in done.stderr


def test_programs_that_are_not_there(home: Path) -> None:
    steps(home, STEP.format("12.0", "n1"))
    for name, command in (("srun", "attach"), ("ssh", "ssh"), ("scontrol", "attach")):
        (home / "bin" / name).chmod(0o644)
        assert f"piolet: error: cannot start {name}: " in piolet(home, command, "12.0", path="").stderr


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ("srun true", {}, "this srun would ask for a job of its own"),
        ("srun --overlap true", {"SLURM_JOB_ID": "13"}, "this srun is of job 13"),
        ("srun --jobid=13 true", {"SLURM_JOB_ID": "12"}, "this srun is of job 13"),
        ("srun --jobid=12 --overlap true", {"SLURM_JOB_ID": "13"}, ""),
        ("srun --overlap true", {"SLURM_JOB_ID": "12"}, ""),
        ("srun true", {"SLURM_JOB_ID": "12"}, "warning"),
        ("srun true", {"SLURM_JOB_ID": "12", "SLURM_OVERLAP": ""}, ""),
    ],
)
def test_what_srun_is_told_before_a_node_is_asked(
    words: str, variables: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(variables, "/")
    parsed = srunwords.parse(words.split())
    if said.startswith("this"):
        with pytest.raises(UsageError, match=said) as caught:
            attached.check("12.0", parsed, host)
        assert "--jobid=12 --overlap" in (caught.value.hint or "")
        return
    attached.check("12.0", parsed, host)
    assert ("without --overlap this step may wait" in capsys.readouterr().err) == bool(said)
