"""`--vet` on a real cluster: the right node is left out, with its reason, and the application runs on the others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.cluster.vetting import left_out, vetted, wrong_with
from tests.support.waiting import wait_until

PROTOCOL = """\
name: nodes
evals:
- name: limits
  type: limits
- name: memory
  type: memory_available
- name: disk
  type: scratch_io
  path: {disk}
  size: 8 MB
"""


OWN = """\
from piolet.api import Context, Eval, Verdict


class Own(Eval):
    name = "own"

    def check(self, context: Context) -> Verdict:
        return Verdict("pass")
"""


@pytest.fixture
def room(cluster: Cluster) -> Path:
    """A directory of alice with a protocol, and a directory `disk` that it writes to."""
    path = cluster.room("alice")
    (path / "disk").mkdir()
    cluster.give("alice", path / "disk")
    cluster.write("alice", path / "ml.yaml", PROTOCOL.format(disk=path / "disk"))
    return path


@pytest.fixture
def sick(faults: Faults, room: Path) -> Iterator[Path]:
    """The same, and on node2 the disk is full."""
    disk = str(room / "disk")
    subprocess.run(
        faults.on_node("node2", "mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", disk), check=True
    )
    yield room
    subprocess.run(faults.on_node("node2", "umount", "-l", disk), check=True)


def test_a_sick_node_is_left_out_of_a_step(cluster: Cluster, sick: Path) -> None:
    """Four nodes allocated, three wanted: the fourth is the sick one, and the report says why."""
    vetted = "srun -N3 -n3 --vet=ml.yaml,report=vet.json hostname"
    script = f"{vetted}\necho status $?\ncat vet.json | tr -d ' \\n'\n"
    out = cluster.sbatch("alice", script, "-N4", cwd=sick)
    assert sorted(line for line in out.splitlines() if line.startswith("node")) == ["node1", "node3", "node4"]
    assert "status 0" in out
    assert left_out(out) == ["node2"] and "disk: " in wrong_with(out, "node2")[0] and "full" in out
    assert '"node":"node2"' in out and '"outcome":"fail"' in out


def test_srun_by_itself_gives_a_sick_node_back(cluster: Cluster, sick: Path, tiny_edf: Path) -> None:
    """It asks for other nodes, vets those too, and the application runs once, in its container."""
    words = ["srun", "-N3", "--vet=ml.yaml", f"--environment={tiny_edf}", "sh", "-c", "cat /marker; hostname"]
    done = cluster.run("alice", *words, cwd=sick)
    assert done.status == 0, done
    lines = done.out.splitlines()
    assert sorted(lines) == ["in the image"] * 3 + ["node1", "node3", "node4"]
    assert "asking for other nodes than node2" in done.err
    wait_until(lambda: not cluster.jobs(), what="the end of what it gave back")


def test_srun_by_itself_goes_on_with_fewer(cluster: Cluster, sick: Path) -> None:
    """Four of four nodes are asked for, one is sick, and there are no others: three are enough, as in salloc's job."""
    words = ["srun", "-N4", "-n8", "--vet=ml.yaml,min_nodes=3", "sh", "-c", "hostname; exit 7"]
    done = cluster.run("alice", *words, cwd=sick)
    assert done.status == 7, done
    assert len(done.out.split()) == 6 and set(done.out.split()) == {"node1", "node3", "node4"}
    assert "asking for 3 nodes, without node2" in done.err and "3 of 3 nodes good" in done.err
    wait_until(lambda: not cluster.jobs(), what="the end of what it gave back")
    done = cluster.run("alice", "salloc", "-N4", "-n8", *words, cwd=sick)
    assert done.status == 7 and set(done.out.split()) == {"node1", "node3", "node4"}, done


RATE = """\
from piolet.api import Eval, Verdict
class Rate(Eval):
    better = "higher"
    unit = "GB/s"
    def check(self, context):
        return Verdict("pass", "", "rate", VALUES[context.node])
"""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            (100, 50, 100, 100),
            "bad (node's): node2: mine.Rate: 50 GB/s is below the limit of 90 GB/s of its peers (rate)",
        ),
        ((100, 200, 100, 100), "4 of 4 nodes good"),
        ((100, 50, 50, 100), "the nodes are two groups, 2 nodes near 50 GB/s and 2 nodes near 100 GB/s"),
    ],
)
def test_a_users_own_class_and_its_peers(cluster: Cluster, room: Path, values: tuple[int, ...], said: str) -> None:
    table = {f"node{number}": value for number, value in enumerate(values, 1)}
    cluster.write("alice", room / "mine.py", RATE.replace("VALUES", str(table)))
    out = vetted(cluster, room, "evals:\n- {type: mine.Rate, baseline: peers}\n")
    assert said in out, out


def test_too_few_good_nodes(cluster: Cluster, sick: Path) -> None:
    """Status 3, a table, and the application is not started."""
    out = cluster.sbatch("alice", "srun -N4 -n4 --vet=ml.yaml touch started\necho status $?\n", "-N4", cwd=sick)
    assert "status 3" in out
    assert left_out(out) == ["node2"] and "disk: " in wrong_with(out, "node2")[0]
    assert "the application was not started" in out
    assert not (sick / "started").exists()


def test_good_nodes_go_on_as_they_are(cluster: Cluster, room: Path) -> None:
    """The application's words and its exit status are untouched."""
    words = ["srun", "-N2", "--vet=ml.yaml", "sh", "-c", 'echo "$@"; exit 7', "--", "--exclude=x", "-N9"]
    done = cluster.run("alice", *words, cwd=room)
    assert done.status == 7
    assert done.out == "--exclude=x -N9\n" * 2
    assert "2 of 2 nodes good" in done.err


@pytest.mark.parametrize("name", ["--", "-x", "--request"])
def test_a_name_that_looks_like_an_option(cluster: Cluster, room: Path, name: str) -> None:
    """srun takes whatever comes after --vet as its value; it is the name of a file, and of one that is not there."""
    done = cluster.run("alice", "srun", "-N1", "--vet", name, "true", cwd=room)
    assert done.status == 1
    assert f"piolet: error: cannot read the protocol {name}: No such file" in done.err


def test_a_job_is_vetted_once(cluster: Cluster, sick: Path) -> None:
    """The second srun of a job with the same protocol leaves the same node out, without another vet step."""
    step = "srun -N3 -n3 --vet=ml.yaml hostname\n"
    out = cluster.sbatch("alice", f"{step}{step}squeue -h -s -j $SLURM_JOB_ID\nscontrol show step\n", "-N4", cwd=sick)
    nodes = [line for line in out.splitlines() if line in {"node1", "node2", "node3", "node4"}]
    assert sorted(nodes) == ["node1", "node1", "node3", "node3", "node4", "node4"]
    assert out.count("scratch_io") + out.count("\ndisk ") == 1, out


def test_a_job_whose_nodes_are_good_asks_nothing_again(cluster: Cluster, room: Path) -> None:
    """The plugin takes the record, and says so in words of its own. A changed protocol is another vetting."""
    again = "srun -N4 --vet=ml.yaml hostname | sort\n"
    script = f"{again}{again}cp ml.yaml other.yaml; sleep 0.1; sed -i s/nodes/more/ ml.yaml\n{again}"
    out = cluster.sbatch("alice", f"{script}srun -N4 --vet=other.yaml true\n", "-N4", cwd=room)
    assert out.count("node1\n") == 3, out
    # A copy of a protocol is the same vetting, which the command finds.
    assert out.count("of 4 nodes good") == 3 and out.count(" s ago") == 1 and out.count("all 4 nodes good") == 1, out


def test_of_two_sruns_at_once_one_vets(cluster: Cluster, room: Path) -> None:
    one = "srun --overlap -N4 --vet=ml.yaml true &\n"
    out = cluster.sbatch("alice", f"{one}{one}wait\n", "-N4", cwd=room)
    assert out.count("\ndisk ") == 1 and out.count(" s ago") == 1, out


def test_no_other_nodes_than_bad_ones(cluster: Cluster, sick: Path) -> None:
    """All four are asked for by an srun of its own: the status is 3, and not what srun makes of it."""
    done = cluster.run("alice", "srun", "-N4", "--vet=ml.yaml", "touch", "started", cwd=sick)
    assert done.status == 3 and "no other nodes than node2 can be had" in done.err, done
    assert not (sick / "started").exists() and not cluster.jobs()


def test_the_protocol_of_sbatch_is_that_of_its_sruns(cluster: Cluster, sick: Path) -> None:
    """An srun's own option wins; 'none' vets nothing."""
    script = "srun -N3 -n3 hostname 2>&1 | sort\necho then\nsrun --vet=none -N4 -n4 hostname 2>&1 | sort\n"
    out = cluster.sbatch("alice", script, "-N4", "--vet=ml.yaml", cwd=sick)
    before, _, after = out.partition("then\n")
    assert [line for line in before.splitlines() if line.startswith("node")] == ["node1", "node3", "node4"]
    # Where the step before has not quite ended, srun says that it waits.
    ran = [line for line in after.splitlines() if not line.startswith("srun: ")]
    assert ran == ["node1", "node2", "node3", "node4"], after


def test_a_relative_protocol_of_sbatch_is_a_file_where_it_was_called(cluster: Cluster, room: Path) -> None:
    """Its script has gone elsewhere, or began elsewhere, where a file of the same name is another one."""
    other = room / "other"
    other.mkdir()
    cluster.give("alice", other)
    cluster.write("alice", other / "ml.yaml", "name: elsewhere\nevals:\n- {type: limits, min_cpus: 100000}\n")
    words = ("-N2", "--vet=ml.yaml")
    cluster.write("alice", room / "own.py", OWN)
    cluster.write("alice", room / "own.yaml", "name: own\nevals:\n- type: own.Own\n")
    step = "srun hostname; echo status $?\n"
    for script, more in ((f"cd other\n{step}{step}", ()), (f"{step}{step}", (f"--chdir={other}",))):
        out = cluster.sbatch("alice", script, *words, f"--output={room}/job.out", *more, cwd=room)
        assert out.count("status 0") == 2 and out.count("vetting 'nodes'") == 2, out
        assert out.count("all 2 nodes good") == 1, out  # the plugin's record: by the same name
        out = cluster.sbatch("alice", script, "-N2", "--vet=own.yaml", f"--output={room}/job.out", *more, cwd=room)
        assert out.count("status 0") == 2 and out.count("vetting 'own'") == 2, out
    # srun's own is where srun is.
    out = cluster.sbatch("alice", "cd other\nsrun --vet=ml.yaml hostname; echo status $?\n", *words, cwd=room)
    assert "vetting 'elsewhere'" in out and "status 3" in out, out


def test_sallocs_shell_is_no_step_to_vet(cluster: Cluster, room: Path) -> None:
    """With use_interactive_step salloc starts `srun --interactive`; the sruns in there are vetted."""
    inner = "srun --interactive --preserve-env sh -c 'echo shell; srun --overlap hostname'"
    done = cluster.run("alice", "salloc", "-N2", "--vet=ml.yaml", "sh", "-c", inner, cwd=room)
    assert done.status == 0 and done.out.splitlines()[0] == "shell", done
    assert sorted(done.out.splitlines()[1:]) == ["node1", "node2"] and done.err.count("vetting 'nodes'") == 1, done


@pytest.mark.parametrize("command", ["srun", "sbatch"])
def test_a_mistake_in_the_protocol_queues_nothing(cluster: Cluster, room: Path, command: str) -> None:
    """File, line, column, caret and hint, and nothing else."""
    cluster.write("alice", room / "bad.yaml", "name: x\nevals:\n- name: a\n  type: limitz\n")
    job = cluster.script("alice", "hostname")
    before = cluster.run("alice", "scontrol", "show", "job").out
    done = cluster.run("alice", command, "--vet=bad.yaml", str(job), cwd=room)
    assert done.status == 1
    assert "bad.yaml:4:9: " in done.err and "^" in done.err and "limits" in done.err
    assert done.out == ""
    if command == "sbatch":
        assert cluster.run("alice", "scontrol", "show", "job").out == before


def test_a_node_whose_daemon_is_down_is_named(cluster: Cluster, faults: Faults, room: Path) -> None:
    """No verdict is not a pass: the node is left out, with the reason."""
    faults.stop_pioletd("node3", kill=True)
    try:
        out = cluster.sbatch("alice", "srun -N3 -n3 --vet=ml.yaml hostname\necho status $?\n", "-N4", cwd=room)
    finally:
        faults.repair()
    assert sorted(line for line in out.splitlines() if line.startswith("node")) == ["node1", "node2", "node4"]
    assert left_out(out) == ["node3"]
    assert "status 0" in out


def test_a_hung_file_system_is_named_in_time(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The eval that looks at it is given up; nobody else waits for it."""
    place = room / "hung"
    place.mkdir()
    text = f"name: x\nevals:\n- name: mounts\n  type: mounts\n  paths: [{place}]\n  answer: 0.5\n"
    cluster.write("alice", room / "mounts.yaml", text)
    with faults.hung("node4", place):
        # It hangs until the block is left: whoever waited for it would never come to an end.
        out = cluster.sbatch("alice", "srun -N3 -n3 --vet=mounts.yaml hostname\necho status $?\n", "-N4", cwd=room)
    assert sorted(line for line in out.splitlines() if line.startswith("node")) == ["node1", "node2", "node3"]
    assert left_out(out) == ["node4"] and "mounts: " in wrong_with(out, "node4")[0]


def test_a_vet_step_leaves_nothing(cluster: Cluster, faults: Faults, room: Path) -> None:
    """After a vetting there is no process, mount, descriptor or file that was not there before."""
    cluster.run("alice", "srun", "-N4", "--vet=ml.yaml", "true", cwd=room).good()
    with faults.nothing_left():
        for _ in range(3):
            cluster.run("alice", "srun", "-N4", "--vet=ml.yaml", "true", cwd=room).good()
