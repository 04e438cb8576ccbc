"""Attacks on the central service's rules: users who want a node taken out, or out of others' way."""

from __future__ import annotations

from piolet.central.conclusions import UNFIT
from piolet.central.rules.engine import Engine

from tests.attacks.attack import Broken, attack
from tests.unit.central.making import CATALOGUE, DAY, event, rules, waited
from tests.unit.central.test_trust import forged


@attack("users are believed")
def test_thirty_accounts_forge_what_takes_a_node_out() -> None:
    """Promise: what users bring about asks for a re-vet and concludes nothing else. They say of four nodes all that
    programs can: verdicts, exit statuses, page faults of GPUs, processes that do not die."""
    engine = Engine(rules(CATALOGUE))
    found = [one for each in forged(30, 10_000, nodes=4) for one in engine.take(each)] + waited(engine, 8 * DAY)
    if any(one.action in UNFIT for one in found):
        raise Broken("users have nodes taken out")


@attack("re-vets have no budget")
def test_one_account_has_the_whole_cluster_vetted_again() -> None:
    """Promise: users bring about few re-vets. One says of 500 nodes, four times each, that a vetting failed."""
    engine = Engine(rules(CATALOGUE))
    failed = {"state": "fail"}
    found = [
        one
        for number in range(2000)
        for one in engine.take(event("vet.verdict", number * 2, f"n{number % 500}", uid=7, job=1 + number, body=failed))
    ]
    if len({one.node for one in found}) > 10:
        raise Broken("one account asks for re-vets of as many nodes as it likes")
