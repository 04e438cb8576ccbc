"""`piolet vet gate` of an srun with its own allocation: it is given back only if other nodes could be better."""

from __future__ import annotations

import pytest
from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER

from tests.vet.recorded import NODES, SCONTROL, Slurm, told


def of(slurm: Slurm, count: int) -> list[str]:
    """Have Slurm's allocation be of so many nodes; return them."""
    (slurm.directory / "scontrol").write_text(SCONTROL.replace("NodeList=node[1-4]", f"NodeList=node[1-{count}]"))
    return NODES[:count]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_variable_that_is_unset_everywhere_costs_no_second_allocation(slurm: Slurm, count: int) -> None:
    nodes = of(slurm, count)
    slurm.record(b"".join(told(node, FAIL, "FOO is not set", USER) for node in nodes))
    status, words, said = slurm.gate(f"srun -N{count} app", stage="allocated")
    assert (status, words) == (3, []), said
    assert said.count("FOO is not set") == 2, said  # on the screen for all nodes, and why nothing started
    ours = "limits: FOO is not set; that is yours or the protocol's, so no other nodes are asked for"
    assert f"piolet: error: the application was not started: {ours}" in said
    assert "giving job" not in said and "--exclude" not in said


@pytest.mark.parametrize(("count", "again"), [(1, True), (2, True), (3, False), (4, False)])
def test_what_may_be_either_is_everybodys_from_three_nodes_on(slurm: Slurm, count: int, again: bool) -> None:
    nodes = of(slurm, count)
    slurm.record(b"".join(told(node, INCONCLUSIVE, "no answer", EITHER) for node in nodes))
    status, words, said = slurm.gate(f"srun -N{count} app", stage="allocated")
    assert (status, bool(words)) == ((0, True) if again else (3, False)), said
    assert ("not judged (unclear)" if again else "not judged (all nodes)") in said
    assert ("limits: no answer; all nodes say so, so no other nodes are asked for" in said) is not again


@pytest.mark.parametrize("count", [1, 2, 4])
def test_hardware_that_is_sick_on_all_nodes_is_given_back(slurm: Slurm, count: int) -> None:
    nodes = of(slurm, count)
    slurm.record(b"".join(told(node, FAIL, "XID 79", NODE) for node in nodes))
    status, words, said = slurm.gate(f"srun -N{count} app", stage="allocated")
    assert status == 0 and words[1].startswith("--exclude=node1"), said


def test_one_sick_node_among_four_that_all_miss_a_library(slurm: Slurm) -> None:
    """Other nodes would miss it as well; with the library there, the sick one alone is given back."""
    (slurm.directory / "p.yaml").write_text("evals:\n- type: limits\n- {type: env, name: library}\n")
    sick = {"node3": (FAIL, "XID 79", NODE)}

    def record(missing: bool) -> None:
        out = b""
        for node in NODES:
            other = told(node, INCONCLUSIVE, "there is no module 'torch'", USER) if missing else told(node)
            out += told(node, *sick.get(node, (PASS, ""))) + other.replace(b'"eval":"limits"', b'"eval":"library"')
        slurm.record(out)

    record(missing=True)
    status, words, said = slurm.gate("srun -N4 app", stage="allocated")
    assert (status, words) == (3, []), said
    assert "bad (node's): node3: limits: XID 79" in said
    assert "not judged (yours): node[1-4]: library: there is no module 'torch'" in said
    assert "left out: --exclude=node3\n" in said
    assert said.count("so no other nodes are asked for") == 1
    record(missing=False)
    status, words, said = slurm.gate("srun -N4 app", stage="allocated")
    assert (status, words[1]) == (0, "--exclude=node3"), said


def test_inside_an_allocation_it_says_what_to_mend(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL, "FOO is not set", USER) for node in NODES))
    status, words, said = slurm.gate("srun -N3 app")
    assert (status, words) == (3, [])
    assert "was not started: limits: FOO is not set; that is yours or the protocol's\n" in said
