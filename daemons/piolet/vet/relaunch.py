"""On which of the vetted nodes an srun is to run, and by which words. Pure: nothing is asked and nothing is run.

It refuses what it cannot do rightly: `--relative`, files of hosts, heterogeneous steps, and a `--nodelist` that
names a node that is bad. All of that matters only when a node has to be left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from piolet.base import hostlist
from piolet.base.errors import VetError
from piolet.slurm.srunwords import Words
from piolet.vet import verdicts
from piolet.vet.runner.plan import Plan
from piolet.vet.verdicts import BAD, GOOD, Decision

_COUNT = re.compile(r"(\d+)([kKmM]?)(?:-(\d+)([kKmM]?))?", re.ASCII)
_SCALES = {"": 1, "k": 1024, "m": 1024 * 1024}
_HINT = "leave it out, or leave the bad nodes out yourself with --exclude"


@dataclass(frozen=True)
class WantedNodes:
    """How many nodes an srun is to run on: `most` as asked for, at least `least`."""

    least: int
    most: int


@dataclass(frozen=True)
class NodeChoice:
    """The nodes to run on, empty: there are too few, for `reason`; `words` empty: the srun goes on as it is.

    wanted   how many were asked for
    """

    nodes: tuple[str, ...]
    words: tuple[str, ...] = ()
    reason: str = ""
    wanted: int = 0


def wanted(words: Words, nodes: Sequence[str], plan: Plan) -> WantedNodes:
    """Return how many of `nodes` this srun asks for. Raises VetError: it asks for more than there are."""
    text = words.value("nodes")
    tasks = _number(words.value("ntasks"))
    if text is not None:
        low, high = _range(text)
    else:
        # SLURM_JOB_NUM_NODES stands for the whole allocation; with fewer tasks srun takes fewer nodes.
        low = high = min(len(nodes), tasks or len(nodes))
        if plan.spares:
            low = max(1, min(low, len(nodes) - plan.spares))
    if low > len(nodes):
        raise VetError(f"srun is to run on {low} nodes, but may use {len(nodes)} of the job's", "ask for fewer with -N")
    high = min(high, len(nodes))
    least = min(low, plan.min_nodes) if plan.min_nodes else low
    return WantedNodes(max(1, least), max(1, high))


def choose(
    words: Words, nodes: Sequence[str], plan: Plan, decision: Decision, environ: Mapping[str, str]
) -> NodeChoice:
    """Return the nodes that this srun runs on, and by which words. Raises VetError."""
    excluded = set(_hosts(words.value("exclude")))
    want = wanted(words, [node for node in nodes if node not in excluded], plan)
    return dataclasses.replace(_choose(words, nodes, decision, environ, excluded, want), wanted=want.most)


def _choose(
    words: Words, nodes: Sequence[str], decision: Decision, environ: Mapping[str, str], excluded: set[str],
    want: WantedNodes,
) -> NodeChoice:  # fmt: skip
    named = [node for node in _hosts(words.value("nodelist")) if node in decision.state]
    state = {node: BAD if node in excluded else own for node, own in decision.state.items()}
    usable = [node for node, own in state.items() if own != BAD]
    bad_named = [node for node in named if state[node] == BAD]
    if bad_named:
        return NodeChoice((), reason=f"--nodelist names {', '.join(bad_named[:5])}, which must not be used")
    if len(usable) < want.least:
        few = f"{want.least} good nodes are needed, and there are {len(usable)}"
        return NodeChoice((), reason=f"{few} besides those in --exclude" if excluded & set(nodes) else few)
    count = min(want.most, len(usable))
    if all(own == GOOD for node, own in decision.state.items() if node not in excluded) and count == want.most:
        return NodeChoice(tuple(usable))
    if len(named) >= count:
        return NodeChoice(tuple(named))
    rest = {node: own for node, own in state.items() if node not in named}
    best = verdicts.choose(dataclasses.replace(decision, state=rest), count - len(named))
    chosen = [node for node in nodes if node in best or node in named]
    out = [node for node in nodes if node not in chosen and node not in excluded]
    if not out:
        return NodeChoice(tuple(chosen))
    _refuse(words, environ)
    return NodeChoice(tuple(chosen), tuple(_words(words, out, want, len(chosen), len(nodes), environ)))


def again(words: Words, bad: Sequence[str], request: str, environ: Mapping[str, str]) -> list[str]:
    """Return the words of the same srun that asks for other nodes than `bad`, with the request `request`."""
    _refuse(words, environ)
    named = set(_hosts(words.value("nodelist"))) & set(bad)
    if named:
        raise VetError(f"--nodelist names {', '.join(sorted(named))}, which must not be used", _HINT)
    exclude = _merged(words, bad)
    return [words.program, f"--exclude={exclude}", *words.without("exclude", "vet"), f"--vet={request}", *words.rest]


def with_fewer(
    words: Words, nodes: Sequence[str], bad: Sequence[str], plan: Plan, request: str, environ: Mapping[str, str]
) -> list[str]:
    """Return the words of the same srun that asks for no more than the good ones of `nodes`, without `bad`."""
    _refuse(words, environ)
    return _words(words, bad, wanted(words, nodes, plan), len(nodes) - len(bad), len(nodes), environ, request)


def _words(
    words: Words, out: Sequence[str], want: WantedNodes, count: int, total: int, environ: Mapping[str, str],
    request: str = "none",
) -> list[str]:  # fmt: skip
    drop = ["exclude", "vet"]
    new = [f"--exclude={_merged(words, out)}"]
    given = words.value("nodes")
    tasks = words.value("ntasks")
    if given is None or count != want.most:
        new.append(f"--nodes={count}")
        drop.append("nodes")
        fewer = _tasks(words, count, want.most if given is not None else total, environ)
        if fewer is not None and (tasks is None or count != want.most):
            new.append(f"--ntasks={fewer}")
            drop.append("ntasks")
    return [words.program, *new, *words.without(*drop), f"--vet={request}", *words.rest]


def _tasks(words: Words, count: int, of: int, environ: Mapping[str, str]) -> int | None:
    """Return how many tasks there are on `count` nodes when there would have been so many on `of`."""
    each = _number(words.value("ntasks-per-node")) or _number(environ.get("SLURM_NTASKS_PER_NODE"))
    if each:
        return each * count
    asked = (
        _number(words.value("ntasks")) or _number(environ.get("SLURM_NTASKS")) or _number(environ.get("SLURM_NPROCS"))
    )
    return None if not asked else max(count, asked * count // of)


def _refuse(words: Words, environ: Mapping[str, str]) -> None:
    for name in ("relative", "nodefile", "het-group", "no-allocate"):
        if words.value(name) is not None:
            raise VetError(f"no node can be left out of an srun with --{name}", _HINT)
    if environ.get("SLURM_HOSTFILE"):
        raise VetError("no node can be left out of an srun with SLURM_HOSTFILE", _HINT)
    if ":" in words.rest or environ.get("SLURM_HET_SIZE"):
        raise VetError("no node can be left out of a heterogeneous srun", _HINT)


def _merged(words: Words, out: Sequence[str]) -> str:
    return ",".join(dict.fromkeys([*_hosts(words.value("exclude")), *out]))


def _hosts(text: str | None) -> list[str]:
    if text is None:
        return []
    if "/" in text:
        raise VetError(
            f"the file of hosts {text} cannot be combined with leaving nodes out", "write the hosts themselves"
        )
    return hostlist.expand(text)


def _range(text: str) -> tuple[int, int]:
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise VetError(f"'{text}' is no number of nodes that Piolet understands", "write -N4 or -N2-4")
    low = int(match[1]) * _SCALES[match[2].lower()]
    high = int(match[3]) * _SCALES[match[4].lower()] if match[3] else low
    if not 1 <= low <= high:
        raise VetError(f"'{text}' is no number of nodes that Piolet understands", "write -N4 or -N2-4")
    return low, high


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
