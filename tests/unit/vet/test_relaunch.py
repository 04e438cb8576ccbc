"""srun's words: how they are read, on which nodes a step runs, and what the words become. And what follows --vet=."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from piolet.base.errors import SlurmError, VetError
from piolet.slurm import srunwords
from piolet.vet import relaunch, request
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.verdicts import BAD, GOOD, WARNED, Decision

NODES = ["node1", "node2", "node3", "node4"]


def plan(**settings: int) -> Plan:
    return Plan("p", (Task("limits", "limits", "m:C"),), **settings)  # type: ignore[arg-type]


def decision(**state: str) -> Decision:
    full = {node: state.get(node, GOOD) for node in NODES}
    return Decision(full, {node: [] for node in NODES}, [])


def become(
    command: str, bad: str = "node2", environ: Mapping[str, str] | None = None, what: Plan | None = None, **state: str
) -> tuple[str, ...]:
    states = dict.fromkeys(bad.split(), BAD) | state
    words = srunwords.parse(command.split())
    return relaunch.choose(words, NODES, what or plan(), decision(**states), environ or {}).words


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("srun -N3 app", "srun --exclude=node2 -N3 --vet=none app"),
        ("srun -N 3 app", "srun --exclude=node2 -N 3 --vet=none app"),
        ("srun --nodes=3 app", "srun --exclude=node2 --nodes=3 --vet=none app"),
        ("srun --nodes 3 app", "srun --exclude=node2 --nodes 3 --vet=none app"),
        ("srun -N2 --nodel node1 app", "srun --exclude=node2,node4 -N2 --nodel node1 --vet=none app"),
        ("srun -lN3 app", "srun --exclude=node2 -l -N3 --vet=none app"),
        ("srun -l -N3 -n 6 app -n 7 -N 9", "srun --exclude=node2 -l -N3 -n 6 --vet=none app -n 7 -N 9"),
        ("srun --ntasks=6 -N3 app", "srun --exclude=node2 --ntasks=6 -N3 --vet=none app"),
        ("srun -N3 --vet=p.yaml app --vet=x", "srun --exclude=node2 -N3 --vet=none app --vet=x"),
        ("srun -N3 --vet p.yaml app", "srun --exclude=node2 -N3 --vet=none app"),
        ("srun -N3 -- app", "srun --exclude=node2 -N3 --vet=none -- app"),
        ("/opt/bin/srun -N3 app", "/opt/bin/srun --exclude=node2 -N3 --vet=none app"),
        ("srun -N3 -K --pty -I5 app", "srun --exclude=node2 -N3 -K --pty -I5 --vet=none app"),
        ("srun -N3 --environment demo app", "srun --exclude=node2 -N3 --environment demo --vet=none app"),
        ("srun -N1 -N3 app", "srun --exclude=node2 -N1 -N3 --vet=none app"),
        # more good ones than needed: those that stand together
        ("srun -N2 app", "srun --exclude=node1,node2 -N2 --vet=none app"),
        ("srun -N2-3 app", "srun --exclude=node2 -N2-3 --vet=none app"),
        # what was left out already stays so
        ("srun -N2 -x node4 app", "srun --exclude=node4,node2 -N2 --vet=none app"),
        ("srun -N2 --exclude=node[1,4] app", None),
        ("srun -N2 --exclude node3 app", "srun --exclude=node3,node2 -N2 --vet=none app"),
        # srun takes no more nodes than tasks
        ("srun -n 2 app", "srun --exclude=node1,node2 --nodes=2 -n 2 --vet=none app"),
        # a node that is named is used
        ("srun -N2 -w node1 app", "srun --exclude=node2,node4 -N2 -w node1 --vet=none app"),
    ],
)
def test_what_the_words_become(command: str, expected: str | None) -> None:
    assert " ".join(become(command)) == (expected or "")


@pytest.mark.parametrize(
    ("command", "environ", "tasks"),
    [
        ("srun app", {}, None),
        ("srun app", {"SLURM_NTASKS": "4"}, 3),
        ("srun app", {"SLURM_NTASKS": "16"}, 12),
        ("srun app", {"SLURM_NPROCS": "8"}, 6),
        ("srun app", {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS": "16"}, 12),
        ("srun --ntasks-per-node=2 app", {"SLURM_NTASKS": "16"}, 6),
        ("srun -n8 app", {}, 6),
        ("srun -N4 app", {"SLURM_NTASKS": "4"}, 3),
        ("srun -N4 --ntasks=8 app", {}, 6),
    ],
)
def test_fewer_nodes_have_fewer_tasks(command: str, environ: dict[str, str], tasks: int | None) -> None:
    for what in (plan(min_nodes=2), plan(spares=1)):
        if "-N" in command and what.spares:
            continue
        words = become(command, environ=environ, what=what)
        assert words[:3] == ("srun", "--exclude=node2", "--nodes=3")
        found = [word for word in words if word.startswith(("--ntasks=", "-n"))]
        assert found == ([f"--ntasks={tasks}"] if tasks else [])


@pytest.mark.parametrize("command", ["srun app", "srun -N4 app", "srun -N2 app", "srun --relative=1 -N2 app"])
def test_with_good_nodes_only_nothing_changes(command: str) -> None:
    assert become(command, bad="") == ()


def test_a_warned_node_is_used_only_when_it_is_needed() -> None:
    assert become("srun -N3 app", bad="", node1=WARNED)[1] == "--exclude=node1"
    assert become("srun -N4 app", bad="", node1=WARNED) == ()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("srun app", "4 good nodes are needed, and there are 3"),
        ("srun -N4 app", "4 good nodes are needed, and there are 3"),
        ("srun -N3 -x node1 app", "3 good nodes are needed, and there are 2 besides those in --exclude"),
        ("srun -N2 -w node[1-2] app", "--nodelist names node2, which must not be used"),
    ],
)
def test_too_few_good_nodes(command: str, reason: str) -> None:
    words = srunwords.parse(command.split())
    found = relaunch.choose(words, NODES, plan(), decision(node2=BAD), {})
    assert found.nodes == ()
    assert found.reason == reason


def test_exactly_as_many_as_needed() -> None:
    words = srunwords.parse(["srun", "app"])
    found = relaunch.choose(words, NODES, plan(min_nodes=3), decision(node2=BAD), {})
    assert found.nodes == ("node1", "node3", "node4")
    assert relaunch.choose(words, NODES, plan(min_nodes=4), decision(node2=BAD), {}).nodes == ()


@pytest.mark.parametrize(
    ("command", "environ", "message"),
    [
        ("srun -N2 -r1 app", {}, "no node can be left out of an srun with --relative"),
        ("srun -N2 --relative 1 app", {}, "no node can be left out of an srun with --relative"),
        ("srun -N2 -F hosts app", {}, "with --nodefile"),
        ("srun -N2 --het-group=0 app", {}, "with --het-group"),
        ("srun -N2 a : -N1 b", {}, "a heterogeneous srun"),
        ("srun -N2 app", {"SLURM_HET_SIZE": "2"}, "a heterogeneous srun"),
        ("srun -N2 app", {"SLURM_HOSTFILE": "h"}, "with SLURM_HOSTFILE"),
        ("srun -N2 -w ./hosts app", {}, "the file of hosts ./hosts"),
        ("srun -N5 app", {}, "srun is to run on 5 nodes, but may use 4 of the job's"),
        ("srun -N4,8 app", {}, "'4,8' is no number of nodes"),
        ("srun -N0 app", {}, "'0' is no number of nodes"),
    ],
)
def test_what_is_refused(command: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(VetError) as error:
        become(command, environ=environ)
    assert message in error.value.message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("srun --what app", "'--what' is no option of srun that Piolet knows"),
        ("srun -y app", "'-y' is no option of srun that Piolet knows"),
        ("srun --nodes", "--nodes has no value"),
        ("srun -N", "-N has no value"),
        ("", "there is no srun command"),
    ],
)
def test_words_that_cannot_be_read(command: str, message: str) -> None:
    with pytest.raises(SlurmError) as error:
        srunwords.parse(command.split())
    assert message in error.value.message


def test_options_of_other_plugins_come_from_sruns_help() -> None:
    text = "Usage: srun\n  -N, --nodes=N   number\n      --container-image=X   the image\n      --quick    fast\n"
    known = srunwords.plugin_options(text + "      --maybe[=X]  or not\n")
    assert known == {"container-image": 1, "quick": 0, "maybe": 2}
    words = srunwords.parse(["srun", "--container-image", "i", "--quick", "--maybe", "app", "-N3"], known)
    assert words.rest == ("app", "-N3")


def test_an_srun_that_asks_for_other_nodes() -> None:
    words = srunwords.parse(["srun", "-N2", "--vet=p,retries=1", "-x", "node9", "app", "--vet=p"])
    again = relaunch.again(words, ["node2"], "p,retries=0", {})
    assert " ".join(again) == "srun --exclude=node9,node2 -N2 --vet=p,retries=0 app --vet=p"
    with pytest.raises(VetError, match="--nodelist names node2"):
        relaunch.again(srunwords.parse(["srun", "-w", "node2", "app"]), ["node2"], "p", {})


def test_a_request() -> None:
    text = "a/p.yaml,retries=2,report=r.json,min_nodes=3,budget=1min,on_inconclusive=warn"
    found = request.parse(text)
    assert found == request.VetRequest("a/p.yaml", "r.json", 3, 2, 60.0, "warn")
    assert request.parse(found.with_retries(2)) == found
    changed = found.apply(plan())
    assert (changed.budget_s, changed.min_nodes, changed.tasks[0].on_inconclusive) == (60.0, 3, "warn")
    assert request.parse("p").apply(plan(min_nodes=2)) == plan(min_nodes=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no protocol"),
        (",retries=1", "names no protocol"),
        ("p,", "'' in --vet is no setting"),
        ("p,x", "'x' in --vet is no setting"),
        ("p,x=1", "no setting 'x'"),
        ("p,report=", "'report=' in --vet is no setting"),
        ("p,retries=-1", "'retries' in --vet must be a whole number from 0 to 10"),
        ("p,retries=11", "from 0 to 10"),
        ("p,retries=1,retries=2", "'retries' is twice"),
        ("p,min_nodes=0", "from 1 to"),
        ("p,budget=soon", "'budget' in --vet must be a number in s"),
        ("p,budget=0", "more than 0"),
        ("p,budget=2h", "at most 3600 s"),
        ("p,on_inconclusive=maybe", "must be fail, warn or pass"),
    ],
)
def test_a_wrong_request(text: str, message: str) -> None:
    with pytest.raises(VetError) as error:
        request.parse(text)
    assert message in error.value.message
