"""Where tasks start, what they share with each other, and what of Slurm's is there for them; with either builder."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.nodes import Node, refused
from tests.cluster.support import busybox_layer
from tests.support import oci


def test_what_the_tasks_of_a_step_share(node: Node, tiny: str) -> None:
    """Within a step as on the host, memory of processes included; of the user's other steps /dev/shm, and no more."""
    script = """
if [ $SLURM_PROCID = 0 ]; then
    echo $$ > /dev/shm/$NAME; sleep 60 &
    while [ ! -e /dev/shm/$NAME.done ]; do sleep 0.05; done; kill $!; rm /dev/shm/$NAME.done /dev/shm/$NAME
else
    while ! [ -s /dev/shm/$NAME ]; do sleep 0.05; done
    other=$(cat /dev/shm/$NAME)
    tr '\\0' '\\n' < /proc/$other/environ | grep ^SLURM_PROCID
    readlink /proc/$other/fd/0 > /dev/null && echo its descriptors
    touch /dev/shm/$NAME.done
fi
"""
    name = f"piolet-test-{node.runtime}-{os.getpid()}"
    room = node.cluster.room("alice")
    edf = node.cluster.edf("alice", f'image = "{tiny}"\n[env]\nNAME = "{name}"\n', room)
    options = ("-w", node.name, "-n2")
    within = node.cluster.srun("alice", edf, *options, "sh", "-c", script)
    assert within.good() == "SLURM_PROCID=0\nits descriptors\n"
    apart = f"""
srun --overlap -n1 --environment={edf} sh -c 'SLURM_PROCID=0; {script}' &
srun --overlap -n1 --environment={edf} sh -c 'SLURM_PROCID=1; {script}'
wait
"""
    said = node.cluster.sbatch("alice", apart, *options)
    assert "SLURM_PROCID=0" not in said
    assert "its descriptors" not in said
    assert "Permission denied" in said


def test_slurmd_s_spool_directory_is_there_for_pmix(node: Node, tiny: str) -> None:
    """There the PMIx server of a step has PMIX_SERVER_TMPDIR."""
    config = node.cluster.layout.slurm_conf.read_text()
    spool = config.partition("SlurmdSpoolDir=")[2].split()[0].replace("%n", node.name)
    done = node.sh(f'image = "{tiny}"\n', f"ls {spool}; touch {spool}/x")
    assert f"{node.name}_" in done.out
    assert "Read-only file system" in done.err or "Permission denied" in done.err


# -- where tasks start


def test_the_image_s_working_directory_is_made_where_the_image_lacks_it(node: Node) -> None:
    image = node.cluster.push("workdir-gone", [busybox_layer()], Env=["PATH=/bin"], WorkingDir="/not/there")
    assert node.sh(f'image = "{image}"\n', "pwd; touch x && ls").good() == "/not/there\nx\n"
    room = node.cluster.room("alice")
    # Nothing is made in what is mounted: then tasks start in the root.
    assert node.sh(f'image = "{image}"\nmounts = ["{room}:/not"]\n', "pwd").good() == "/\n"
    assert os.listdir(room) == []


def test_srun_s_chdir(node: Node) -> None:
    own = node.cluster.push("workdir", [busybox_layer(oci.folder("srv/app"))], Env=["PATH=/bin"], WorkingDir="/srv/app")
    room = node.cluster.room("alice")
    edf = node.cluster.edf("alice", f'image = "{own}"\nmounts = ["{room}"]\n', room)

    def where(*options: str, **more: str) -> str:
        return node.cluster.srun("alice", edf, "-w", node.name, *options, "pwd", cwd=room, env=more).good()

    assert where() == "/srv/app\n"
    assert where(f"--chdir={room}") == f"{room}\n"
    assert where("--chdir", "/srv") == "/srv\n"
    assert where("-D", "/nowhere/at/all") == "/srv/app\n"
    assert where(SLURM_WORKING_DIR="/bin") == "/bin\n"
    assert where() == "/srv/app\n"
    given = node.cluster.edf("alice", f'image = "{own}"\nworkdir = "/bin"\n', room, "given.toml")
    assert node.cluster.srun("alice", given, "-w", node.name, "--chdir=/srv", "pwd").good() == "/bin\n"
    script = f"srun --chdir=/srv pwd; cd /; srun pwd; srun -D /bin pwd; srun --environment={given} -D /srv pwd"
    said = node.cluster.sbatch("alice", script, "-w", node.name, f"--environment={edf}", cwd=room)
    assert [line for line in said.splitlines() if line.startswith("/")] == ["/srv", "/srv/app", "/bin", "/bin"]


def test_a_file_of_the_command_that_is_not_where_tasks_start(node: Node, tiny: str) -> None:
    room = node.cluster.room("alice")
    node.cluster.write("alice", room / "job.sh", "echo it runs\n")
    without = node.cluster.edf("alice", f'image = "{tiny}"\nmounts = ["{room}"]\n', room)
    given = node.cluster.edf(
        "alice", f'image = "{tiny}"\nmounts = ["{room}"]\nworkdir = "{room}"\n', room, "given.toml"
    )

    def errors(edf: Path | None, *words: str) -> str:
        return node.cluster.srun("alice", edf, "-w", node.name, *words, cwd=room).said

    said = (
        "piolet: warning: job.sh is in the working directory, but tasks start elsewhere in the container\n"
        "hint: set workdir in the definition file, or give srun --chdir\n"
    )
    for _ in range(2):  # from the cache, too
        assert said in errors(without, "sh", "job.sh")
    assert said in errors(without, "sh", "-x", "job.sh", "more")
    for words in (["sh", "-c", "true"], ["job.sh"], ["sh", "./gone.sh"], ["sh", str(room / "job.sh")]):
        assert "warning" not in errors(without, *words)
    assert "warning" not in errors(without, f"--chdir={room}", "sh", "job.sh")
    assert errors(given, "sh", "job.sh") == ""
    assert errors(None, "sh", "job.sh") == ""


# -- without a file, or with something on top


def test_an_image_alone_and_what_is_said_on_top(node: Node, tiny: str) -> None:
    room = node.cluster.room("alice")
    node.cluster.edf("alice", f'image = "{tiny}"\n[env]\nWORD = "file"\n', room, "x.toml")
    on = ("-w", node.name)

    def run(request: str, script: str) -> str:
        return node.cluster.srun("alice", request, *on, "sh", "-c", script, cwd=room).good()

    assert run(f"image:{tiny}", "cat /marker; pwd") == "in the image\n/\n"
    more = f"x.toml,mount={room}:/x:ro,workdir=/x,env=WORD=line"
    for _ in range(2):
        assert run(more, "pwd; echo $WORD; touch y 2>/dev/null || echo refused") == "/x\nline\nrefused\n"
    assert run("x.toml", "pwd; echo $WORD") == "/\nfile\n"
    script = "ls -d $HOME /etc/hosts /etc/localtime 2>&1 | grep -c '^/'; pwd"
    assert run("x.toml,home=false,mount=!/etc/hosts,mount=!/etc/localtime", script) == "0\n/\n"
    assert run("x.toml", script) == "3\n/\n"
    said = node.cluster.srun("alice", "x.toml,imge=y", *on, "true", cwd=room)
    refused(said, "unknown key 'imge'", "did you mean 'image'?")


def test_a_definition_on_standard_input(node: Node, tiny: str) -> None:
    text = f'image = "{tiny}"\n[env]\nWORD = "{{}}"\n'
    for word in ("one", "two"):
        words = ("srun", "--environment=-", "-w", node.name, "sh", "-c", "cat; echo $WORD")
        assert node.cluster.run("alice", *words, stdin=text.format(word)).good() == f"{word}\n"
    script = node.cluster.script("alice", "srun sh -c 'cat /marker; echo $WORD'\n")
    room = node.cluster.room("alice")
    words = ("sbatch", "--parsable", "--output=job.out", "-w", node.name, "--environment=-", str(script))
    job = node.cluster.run("alice", *words, stdin=text.format("batch"), cwd=room).good().strip()
    node.cluster.wait_end(job)
    assert (room / "job.out").read_text() == "in the image\nbatch\n"
