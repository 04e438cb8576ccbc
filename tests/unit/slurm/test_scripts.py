"""What is told of a batch script, and how it is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.slurm import scripts
from piolet.slurm.scripts import Script, Submission


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("srun hostname", True),
        ("  time /usr/bin/srun -n4 ./a.out", True),
        ("x=$(srun hostname)", True),
        ('exec "$SRUN" ./a.out', True),
        ("mpirun -np 4 ./a.out", True),
        ("mpiexec.hydra ./a.out", True),
        ('subprocess.run(["srun", "hostname"])', True),
        ("# srun hostname", False),
        ("\t#SBATCH --comment=srun", False),
        ("./a.out", False),
        ("my_srun x", False),
        ("srun-like x", False),
        ("./run.srunx", False),
        ("echo mpiruns", False),
        ("", False),
    ],
)
def test_what_starts_steps(line: str, starts: bool) -> None:
    assert Script(f"#!/bin/bash\necho\n{line}\necho\n").starts_steps is starts


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("#SBATCH -N1", [None]),
        ("#SBATCH --environment=a", ["a"]),
        ("#SBATCH -N2 --environment a -n3", ["a"]),
        ("#SBATCH --environment='a b' # --environment=c", ["a b"]),
        ("#SBATCH --environment=a\n#SBATCH hetjob\n#SBATCH --environment=b", ["a", "b"]),
        ("#SBATCH --environment=a\n\n# x\n#SBATCH packjob\n#SBATCH -N1", ["a", None]),
        ("#SBATCH -N1\n#SBATCH hetjob --environment=b", [None, "b"]),
        ("#SBATCH --environment=a\n#SBATCH --environment=b", ["b"]),
        ("#SBATCH --environmental=a", [None]),
        ("#SBATCH --environment", [""]),
        ("#SBATCH --environment='a", [None]),
        ("true\n#SBATCH --environment=a", [None]),
        (" #SBATCH --environment=a", [None]),
    ],
)
def test_the_parts_of_a_job(lines: str, parts: list[str | None]) -> None:
    assert Script(f"#!/bin/bash\n{lines}\nsrun x\n").parts("environment") == parts


@pytest.mark.parametrize(
    ("words", "gives"),
    [
        (("--environment=a", "x.sh"), True),
        (("--environment", "a"), True),
        (("--env", "a"), True),
        (("--environ=a",), True),
        (("--export=ALL", "-N1"), False),
        (("--", "x.sh"), False),
        (("--environments=a",), False),
    ],
)
def test_an_option_of_the_command_line(words: tuple[str, ...], gives: bool) -> None:
    assert Submission(words, None).gives("environment") is gives


@pytest.fixture
def sbatch(tmp_path: Path) -> Path:
    """A program that the kernel calls sbatch; it asks of itself what the plugin's command asks of it."""
    python = tmp_path / "sbatch"
    shutil.copy(os.path.realpath(sys.executable), python)
    return python


ASK = """
import os, sys
sys.path[:0] = sys.argv.pop(1).split(":")
from piolet.slurm import scripts
found = scripts.of_sbatch(os.getpid())
print(None if found is None else found.script and found.script.text, end="")
"""


def asked(sbatch: Path, cwd: Path, *words: str, stdin: Path | None = None, path: str = "") -> str:
    """Return the script that an sbatch with these words is said to have."""
    ask = cwd / "ask"
    ask.write_text(ASK)
    paths = ":".join(path for path in sys.path if path)
    with open(stdin or "/dev/null", "rb") as given:
        return subprocess.run(
            [sbatch, "ask", paths, *words], cwd=cwd, stdin=given, capture_output=True, text=True, check=True,
            env={"PATH": path, "PYTHONHOME": sys.base_prefix},
        ).stdout  # fmt: skip


def test_the_script_is_found(sbatch: Path, tmp_path: Path) -> None:
    room = tmp_path / "room"
    (room / "bin").mkdir(parents=True)
    (room / "data").write_text("no program\n")
    (room / "job.sh").write_text("#!/bin/sh\nhere\n")
    (room / "bin/far.sh").write_text("#!/bin/sh\nin PATH\n")
    os.mkfifo(room / "pipe")
    assert asked(sbatch, room, "-N1", "-J", "data", "job.sh", "bin/far.sh") == "#!/bin/sh\nhere\n"
    assert asked(sbatch, room, str(room / "job.sh")) == "#!/bin/sh\nhere\n"
    assert asked(sbatch, room, "far.sh", path=f"/nowhere:{room}/bin") == "#!/bin/sh\nin PATH\n"
    assert asked(sbatch, room, "--wrap=srun x") == asked(sbatch, room, "--wr", "srun x") == "srun x"
    assert asked(sbatch, room, "-N1", stdin=room / "job.sh") == "#!/bin/sh\nhere\n"
    assert asked(sbatch, room, "pipe", "nothing.sh", "data") == "None"


def test_another_command_has_none(tmp_path: Path) -> None:
    assert scripts.of_sbatch(os.getpid()) is None
    assert scripts.of_sbatch(2**22 + 1) is None
