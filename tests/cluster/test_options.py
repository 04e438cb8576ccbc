"""Mistakes in a request are shown where it is made, by srun, sbatch and salloc alike, before anything is queued."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.support import Cluster, Result
from tools.cluster.state import load

JOB = f"never-queued-{os.getpid()}"


def submit_everywhere(cluster: Cluster, request: str | Path, room: Path, **env: str) -> list[Result]:
    """Ask srun, sbatch and salloc, and return what they said."""
    script = cluster.script("alice", "echo ran")
    commands = (("srun", "echo", "ran"), ("sbatch", script), ("salloc", "echo", "ran"))
    return [
        cluster.run("alice", name, "-J", JOB, f"--environment={request}", *rest, cwd=room, env=env)
        for name, *rest in commands
    ]


def check_refused(cluster: Cluster, said: list[Result], *words: str) -> None:
    """Check that each failed with the same one message with these words in it, and left no job behind."""
    for done in said:
        assert done.status == 1, done
        assert done.out == ""
        assert done.err == said[0].err
        assert done.err.count("piolet: error: ") == 1, done.err
        assert "Traceback" not in done.err
        assert "spank" not in done.err.lower()
        for word in words:
            assert word in done.err, done.err
    assert JOB not in cluster.run("alice", "squeue", "-h", "-o", "%j", "-t", "all").good()


@pytest.mark.parametrize(
    ("text", "line", "column", "width", "words"),
    [
        ('image = "x"\nmounts = ["/tmp",\n', 2, 18, 1, ["not valid TOML"]),
        (
            'image = "{image}"\n\nworkdri = "/tmp"\n',
            3,
            1,
            7,
            ["unknown key", "hint: did you mean 'workdir'?"],
        ),
        ('image = "{image}"\nwritable = "yes"\n', 2, 12, 5, ["writable must be true or false"]),
        ('image = "{image}"\nmounts = ["/tmp", "/no/such/place:/x"]\n', 2, 19, 19, ["/no/such/place, does not exist"]),
        ('image = "{image}"\nmounts = ["/tmp:x"]\n', 2, 11, 8, ["x"]),
        (
            'image = "{image}"\nworkdir = "/${{NO_SUCH_VARIABLE}}"\n',
            2,
            13,
            19,
            ["'NO_SUCH_VARIABLE' is not defined", "hint: "],
        ),
        ('image = "{image}"\n[env]\nSLURM_PROCID = "1"\n', 3, 1, 12, ["SLURM_PROCID"]),
        ('image = "{image}"\n[env]\nN = 1\n', 3, 5, 1, ["hint: "]),
        ('image = "not an image"\n', 1, 9, 14, ["not an image"]),
        ('image = "./no.sqsh"\n', 1, 9, 11, ["no.sqsh"]),
        ('workdir = "/tmp"\n', 1, 11, 6, ["a workdir needs an image", "hint: "]),
        ('base_environment = "./environment.toml"\n', 1, 20, 0, ["environment.toml"]),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_a_mistake_in_the_file_is_shown_with_its_place(
    cluster: Cluster, tiny: str, text: str, line: int, column: int, width: int, words: list[str]
) -> None:
    room = cluster.room("alice")
    edf = cluster.edf("alice", text.format(image=tiny), room)
    said = submit_everywhere(cluster, edf, room)
    check_refused(cluster, said, f"piolet: error: {edf}:{line}:{column}: ", *words)
    if width:
        shown = said[0].err.splitlines()
        marks = next(row for row in shown if row.strip() and not row.strip("^ "))
        assert marks.count("^") >= width
        assert shown[shown.index(marks) - 1].strip() in edf.read_text()


def test_files_that_cannot_be_read(cluster: Cluster) -> None:
    room = cluster.room("alice")
    check_refused(cluster, submit_everywhere(cluster, "no-such-name", room), "no environment 'no-such-name'", "/.edf")
    check_refused(cluster, submit_everywhere(cluster, "./no.toml", room), "no.toml")
    check_refused(cluster, submit_everywhere(cluster, "", room), "hint: ")
    os.mkfifo(room / "fifo.toml")
    check_refused(cluster, submit_everywhere(cluster, "./fifo.toml", room), "fifo.toml")
    closed = cluster.edf("bob", 'image = "x"\n')
    closed.chmod(0o600)
    check_refused(cluster, submit_everywhere(cluster, closed, room), str(closed), "ermission denied")
    cluster.edf("alice", "# " + "x" * (1 << 20) + "\n", room, "long.toml")
    check_refused(cluster, submit_everywhere(cluster, "./long.toml", room), "long.toml")


def test_images_that_cannot_be_had(cluster: Cluster) -> None:
    room = cluster.room("alice")
    for image, words in (
        (f"{cluster.registry}/test/never-pushed:1", ["never-pushed"]),
        ("127.0.0.1:1/some/image:1", ["127.0.0.1:1"]),
        (f"{cluster.registry}/test/never@sha256:{'0' * 64}", ["never"]),
    ):
        edf = cluster.edf("alice", f'image = "{image}"\n', room)
        said = submit_everywhere(cluster, edf, room)
        for done in said:
            assert done.status == 1
            assert done.err.count("piolet: error: ") == 1, done.err
            for word in words:
                assert word in done.err
    assert JOB not in cluster.run("alice", "squeue", "-h", "-o", "%j", "-t", "all").good()


def test_large_environments(cluster: Cluster, tiny: str) -> None:
    room = cluster.room("alice")
    table = "".join(f'V{number} = "{"x" * 990}"\n' for number in range(90))
    edf = cluster.edf("alice", f'image = "{tiny}"\n[env]\n{table}', room)
    done = cluster.srun("alice", edf, "-N2", "sh", "-c", "env | grep -c ^V.*xxx$")
    assert done.good() == "90\n90\n"
    edf = cluster.edf("alice", f'image = "{tiny}"\n[env]\n{table}{table.replace("V", "W")}', room)
    check_refused(cluster, submit_everywhere(cluster, edf, room), "limit")


def test_names_are_looked_up_as_documented(cluster: Cluster, tiny: str) -> None:
    first, second = cluster.room("alice"), cluster.room("alice")
    for place, name in ((first, "one"), (second, "one"), (second, "two")):
        cluster.edf("alice", f'image = "{tiny}"\n[env]\nWHICH = "{place}/{name}"\n', place, f"{name}.toml")
    env = {"EDF_PATH": f"/no/such:{first}:{second}"}
    for request, expected in (("one", f"{first}/one"), ("two", f"{second}/two"), ("two.toml", f"{second}/two")):
        done = cluster.srun("alice", request, "sh", "-c", "echo $WHICH", env=env)
        assert done.good() == f"{expected}\n"
    done = cluster.srun("alice", "one.toml", "sh", "-c", "echo $WHICH", env=env, cwd=second)
    assert done.good() == f"{second}/one\n"
    assert cluster.srun("alice", "demo", "cat", "/etc/piolet-demo-image").good() != ""


def test_a_changed_file_is_read_again(cluster: Cluster, tiny: str) -> None:
    room = cluster.room("alice")
    base = cluster.edf("alice", f'image = "{tiny}"\n[env]\nA = "1"\n', room, "base.toml")
    edf = cluster.edf("alice", f'base_environment = "{base}"\n[env]\nB = "${{GIVEN:-none}}"\n', room)

    def said(**env: str) -> str:
        return cluster.srun("alice", edf, "sh", "-c", "echo $A $B", env=env).good()

    assert [said(), said(), said(GIVEN="x"), said(GIVEN="y"), said()] == ["1 none\n"] * 2 + [
        "1 x\n",
        "1 y\n",
        "1 none\n",
    ]
    cluster.edf("alice", f'image = "{tiny}"\n[env]\nA = "2"\n', room, "base.toml")
    assert said() == "2 none\n"
    base.unlink()
    assert cluster.srun("alice", edf, "true").status == 1


def test_an_unknown_hook_is_a_warning(cluster: Cluster, tiny: str) -> None:
    edf = cluster.edf("alice", f'image = "{tiny}"\n[annotations]\ncom.hooks.no_such.enabled = "true"\n')
    for _ in range(2):
        done = cluster.srun("alice", edf, "cat", "/marker")
        assert done.good() == "in the image\n"
        assert done.err.count("piolet: warning: ") == 1
        assert "no_such" in done.err


def test_the_help_says_what_the_option_is(cluster: Cluster) -> None:
    for command in ("srun", "sbatch", "salloc"):
        said = cluster.run("alice", command, "--help").good()
        assert "--environment=FILE" in said


def test_a_node_without_the_plugin_runs_nothing_bare(cluster: Cluster, tiny_edf: Path, tmp_path: Path) -> None:
    # Per node: slurmstepd reads plugstack.conf anew for each step, in the namespace of its slurmd.
    (tmp_path / "plugstack.conf").write_text("# no plugin\n")
    state = load(cluster.layout.state_file)
    slurmd = state.find("slurmd-node2") if state else None
    assert slurmd is not None
    enter = ["nsenter", f"--target={slurmd.pid}", "--mount", "--"]
    place = str(cluster.layout.etc / "plugstack.conf")
    subprocess.run([*enter, "mount", "--bind", str(tmp_path / "plugstack.conf"), place], check=True)
    try:
        for command in (("sh", "-c", "echo bare"), ("/bin/echo", "bare"), ("./../../bin/echo", "bare")):
            done = cluster.srun("alice", tiny_edf, "-w", "node2", *command)
            assert done.status != 0
            assert done.out == ""
            assert "plugin/piolet_environment/is/missing/on/this/node" in done.err
        both = cluster.srun("alice", tiny_edf, "-N2", "-w", "node[1-2]", "cat", "/marker")
        assert both.status != 0
        assert both.out == "in the image\n"
        assert cluster.srun("alice", None, "-w", "node2", "echo", "as ever").good() == "as ever\n"
    finally:
        subprocess.run([*enter, "umount", place], check=True)
