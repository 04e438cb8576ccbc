"""sbatch's script: where it runs, what is said when an option does nothing for it, and jobs of several parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.faults import Faults
from tests.cluster.nodes import refused
from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.waiting import wait_until

WHERE = "[ -e /marker ] && cat /marker || echo on the host"
PROTOCOL = "name: x\nevals:\n- {type: memory_available, min_available: 1 MB}\n"
OPTIONS = {"environment": "tiny.toml", "vet": "x.yaml", "score": "interval=1s"}


@pytest.fixture(scope="module")
def other(cluster: Cluster) -> str:
    layer = [oci.file("marker", b"in the other image\n")]
    reference = cluster.push("other-script", [busybox_layer(), layer], Env=["PATH=/bin"])
    cluster.run("alice", "piolet", "image", "pull", reference).good()
    return reference


@pytest.fixture
def room(cluster: Cluster, tiny: str, other: str) -> Path:
    """A directory of alice with definition files, and a protocol."""
    path = cluster.room("alice")
    cluster.edf("alice", f'image = "{tiny}"\n', path, "tiny.toml")
    cluster.edf("alice", f'image = "{other}"\n', path, "other.toml")
    cluster.edf("alice", f'image = "{tiny}"\nscript = "inside"\n[env]\nWORD = "inner"\n', path, "inside.toml")
    cluster.write("alice", path / "x.yaml", PROTOCOL)
    return path


def submitted(cluster: Cluster, room: Path, text: str, *options: str) -> tuple[Result, str]:
    """Submit a script; return what sbatch said, and the job's output."""
    script = cluster.write("alice", room / "job.sh", f"#!/bin/sh\n{text}", 0o755)
    output = room / "job.out"
    output.unlink(missing_ok=True)
    done = cluster.run("alice", "sbatch", "--parsable", "--output=job.out", *options, script, cwd=room)
    cluster.wait_end(done.good().strip())
    return done, output.read_text("utf-8")


# -- scripts that start nothing


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_an_option_that_does_nothing_is_told(cluster: Cluster, room: Path, option: str) -> None:
    words = f"--{option}={OPTIONS[option]}"
    for _ in range(2):  # and the second time, when srun would start no command
        done, out = submitted(cluster, room, f"# no srun\n{WHERE}\n", words)
        assert f"warning: the batch script starts nothing by srun, so --{option} does nothing" in done.err
        assert "hint: " in done.err
        assert out.splitlines() == [
            f"piolet: warning: this script starts nothing by srun: --{option} does nothing here",
            "hint: put srun in front of what it is meant for",
            "on the host",
        ]
    done, out = submitted(cluster, room, "srun -Q true\necho end\n", words)
    assert "starts nothing" not in done.err + out


def test_no_warning_is_kept_for_others(cluster: Cluster, room: Path) -> None:
    """The record that the warning came with serves an srun, too."""
    submitted(cluster, room, "true\n", "--environment=tiny.toml")
    done = cluster.run("alice", "srun", "--environment=tiny.toml", "sh", "-c", WHERE, cwd=room)
    assert (done.good(), "srun" in done.err) == ("in the image\n", False)


def test_a_job_from_within_such_a_job_is_another(cluster: Cluster, room: Path) -> None:
    """Its script has the variables of the first, by which Slurm gives it the options, too; and it starts a step."""
    inner = cluster.write("alice", room / "inner.sh", "#!/bin/sh\nsrun -Q true\necho end\n", 0o755)
    words = [f"--{option}={value}" for option, value in OPTIONS.items()]
    _, out = submitted(cluster, room, f"sbatch --parsable --wait --output=inner.out {inner}\n", *words)
    assert out.count("does nothing here") == 3
    inside = (room / "inner.out").read_text()
    assert inside.endswith("end\n") and "does nothing here" not in inside


def test_without_the_option_nothing_is_said(cluster: Cluster, room: Path) -> None:
    done, out = submitted(cluster, room, f"{WHERE}\n")
    assert (done.err, out) == ("", "on the host\n")


# -- scripts inside


def test_a_script_runs_inside(cluster: Cluster, room: Path) -> None:
    text = f'{WHERE}\necho $WORD $1; id -un; [ -s "$0" ] && echo readable; exit 3\n'
    lines = "#!/bin/sh\n#SBATCH --environment=inside.toml\n"
    script = cluster.write("alice", room / "job.sh", lines + text, 0o755)
    done = cluster.run("alice", "sbatch", "--parsable", "--output=job.out", script, "word", cwd=room)
    job = done.good().strip()
    assert done.err == ""
    cluster.wait_end(job)
    assert (room / "job.out").read_text() == "in the image\ninner word\nalice\nreadable\n"
    assert "ExitCode=3:0" in cluster.run("alice", "scontrol", "show", "job", job).good()


def test_it_ends_with_all_that_it_started(cluster: Cluster, room: Path, faults: Faults) -> None:
    with faults.nothing_left():
        submitted(cluster, room, "(trap '' TERM; sleep 4711) &\nsleep 4712 &\necho end\n", "--environment=inside.toml")
        assert not faults.tasks("sleep 471")


def test_it_outlives_its_daemon(cluster: Cluster, room: Path, faults: Faults) -> None:
    text = f"touch began\nwhile [ ! -e go ]; do sleep 0.1; done\n{WHERE}\n"
    edf = cluster.edf("alice", 'base_environment = "./inside.toml"\nworkdir = "."\n', room, "here.toml")
    edf.write_text(edf.read_text().replace('"."', f'"{room}"') + f'mounts = ["{room}"]\n')
    script = cluster.write("alice", room / "job.sh", f"#!/bin/sh\n{text}", 0o755)
    words = ("sbatch", "--parsable", "-w", "node1", "--output=job.out", "--environment=here.toml")
    job = cluster.run("alice", *words, script, cwd=room).good().strip()
    wait_until((room / "began").exists, what="the script's start")
    faults.restart_pioletd("node1")
    cluster.write("alice", room / "go", "")
    cluster.wait_end(job)
    assert (room / "job.out").read_text() == "in the image\n"


def test_slurm_inside_is_the_image_s_affair(cluster: Cluster, room: Path) -> None:
    done, out = submitted(
        cluster, room, "srun true 2>/dev/null || echo there is no srun\n", "--environment=inside.toml"
    )
    assert out == "there is no srun\n"
    assert "calls srun, which is not there unless the image brings it" in done.err
    assert "com.hooks.slurm.enabled" in done.err


@pytest.mark.parametrize("how", ["the hook", "mounts"])
def test_sruns_from_inside_are_in_the_environment(cluster: Cluster, room: Path, tiny: str, how: str) -> None:
    """With Slurm's client in the container: here this machine's."""
    here = [cluster.layout.run, cluster.layout.build, *map(Path, ("/usr", "/lib", "/lib64", "/etc"))]
    mounts = ", ".join(f'"{path}"' for path in here if path.exists() and how == "mounts")
    text = f'image = "{tiny}"\nscript = "inside"\nmounts = [{mounts}]\n[env]\nPATH = "/usr/bin:/bin"\nWORD = "inner"\n'
    if how == "the hook":
        text += '[annotations]\ncom.hooks.slurm.enabled = "true"\n'
    cluster.edf("alice", text, room, "slurm.toml")
    script = (
        f"{WHERE}\nsrun -Q -N2 sh -c 'w=$({WHERE}); echo $w, $WORD'\nsrun -Q --environment=none -N1 sh -c '{WHERE}'\n"
    )
    done, out = submitted(cluster, room, script, "--environment=slurm.toml", "-N2")
    assert out == "in the image\n" + "in the image, inner\n" * 2 + "on the host\n"
    assert ("com.hooks.slurm" in done.err) == (how == "mounts")


def test_what_cannot_be_inside(cluster: Cluster, room: Path) -> None:
    cluster.edf("alice", 'script = "inside"\n', room, "bare.toml")
    script = cluster.script("alice", "true\n")
    refused(
        cluster.run("alice", "sbatch", "--environment=bare.toml", script, cwd=room),
        "bare.toml:1:10: a script inside needs an image",
    )
    cluster.edf("alice", 'image = "x"\nscript = "within"\n', room, "wrong.toml")
    refused(
        cluster.run("alice", "sbatch", "--environment=wrong.toml", script, cwd=room), "wrong.toml:2:10: script must be"
    )


def test_an_interpreter_that_the_image_lacks(cluster: Cluster, room: Path) -> None:
    script = cluster.write("alice", room / "job.py", "#!/usr/bin/python3\nprint('hello')\n", 0o755)
    words = ("sbatch", "--parsable", "--output=job.out", "--environment=inside.toml")
    job = cluster.run("alice", *words, script, cwd=room).good().strip()
    cluster.wait_end(job)
    assert "No such file or directory" in (room / "job.out").read_text()
    assert "JobState=FAILED" in cluster.run("alice", "scontrol", "show", "job", job).good()


def test_the_site_may_say_so_for_all(cluster: Cluster, room: Path) -> None:
    toml = cluster.layout.piolet_toml
    before = toml.read_text()
    toml.write_text(before.replace("[environment]\n", '[environment]\nscript = "inside"\n'))
    try:
        assert submitted(cluster, room, f"{WHERE}\n", "--environment=tiny.toml")[1] == "in the image\n"
        outside = 'base_environment = "./tiny.toml"\nscript = "outside"\n'
        cluster.edf("alice", outside, room, "outside.toml")
        assert submitted(cluster, room, f"{WHERE}\n", "--environment=outside.toml")[1].endswith("on the host\n")
        cluster.edf("alice", '[env]\nX = "1"\n', room, "host.toml")
        assert submitted(cluster, room, f"{WHERE}\n", "--environment=host.toml")[1].endswith("on the host\n")
    finally:
        toml.write_text(before)


# -- jobs of several parts


def parts(first: str, second: str, how: str) -> tuple[str, list[str]]:
    """Return #SBATCH lines, and words of the command line, that give each of two parts its own."""
    if how == "in the script":
        return f"#SBATCH -N1 {first}\n#SBATCH hetjob\n#SBATCH -N1 {second}\n", []
    return "", [*["-N1"], *first.split(), ":", "-N1", *second.split()]


@pytest.mark.parametrize("how", ["in the script", "on the command line"])
@pytest.mark.parametrize("option", ["environment", "vet"])
def test_parts_that_differ_are_refused(cluster: Cluster, room: Path, option: str, how: str) -> None:
    cluster.write("alice", room / "y.yaml", PROTOCOL)
    one, two = {"environment": ("tiny.toml", "other.toml"), "vet": ("x.yaml", "y.yaml")}[option]
    what = {"environment": "environments", "vet": "protocols"}[option]
    before = set(cluster.jobs().splitlines())
    for first, second in ((f"--{option}={one}", f"--{option}={two}"), ("", f"--{option}={two}")):
        lines, words = parts(first, second, how)
        script = cluster.script("alice", f"#!/bin/sh\n{lines}srun --het-group=1 true\n")
        done = cluster.run("alice", "sbatch", *words, script, cwd=room)
        refused(
            done, f"the parts of a heterogeneous job cannot have different {what}", f"'{two}'", "hint: ", "--het-group"
        )
    assert set(cluster.jobs().splitlines()) <= before


@pytest.mark.parametrize("how", ["in the script", "on the command line"])
def test_parts_that_agree_run(cluster: Cluster, room: Path, how: str) -> None:
    same = "--environment=tiny.toml"
    steps = f"srun --het-group=0,1 sh -c '{WHERE}'\nsrun --het-group=1 --environment=other.toml sh -c '{WHERE}'\n"
    for second in (same, ""):  # a part that says nothing has the first one's, as Slurm's own options
        lines, words = parts(same, second, how)
        text = f"#!/bin/sh\n{lines}{steps}"
        script = cluster.write("alice", room / "job.sh", text, 0o755)
        done = cluster.run("alice", "sbatch", "--parsable", "--output=job.out", *words, script, cwd=room)
        cluster.wait_end(done.good().strip())
        assert (room / "job.out").read_text() == "in the image\nin the image\nin the other image\n"


def test_the_command_line_speaks_for_all_parts(cluster: Cluster, room: Path) -> None:
    lines, _ = parts("--environment=tiny.toml", "--environment=other.toml", "in the script")
    script = cluster.write("alice", room / "job.sh", f"#!/bin/sh\n{lines}srun --het-group=1 sh -c '{WHERE}'\n", 0o755)
    words = ("sbatch", "--parsable", "--output=job.out", "--environment=other.toml")
    cluster.wait_end(cluster.run("alice", *words, script, cwd=room).good().strip())
    assert (room / "job.out").read_text() == "in the other image\n"


def test_salloc_is_the_same(cluster: Cluster, room: Path) -> None:
    words = ("salloc", "-Q", "-N1", "--environment=tiny.toml", ":", "-N1", "--environment=other.toml", "true")
    refused(
        cluster.run("alice", *words, cwd=room), "the parts of a heterogeneous job cannot have different environments"
    )
