"""A GPU or a node that is slower than the others, which wait for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

_WAITED = {"cpu_pressure": "a processor", "io_pressure": "I/O", "memory_pressure": "memory"}
_PRESSURES = ("cpu_throttled", *_WAITED)


class Straggler(Detector):
    """Three signs: a lower clock at the same load; more work than peers, which wait; a node whose host is held up.

    Stages of a pipeline and ranks with other parts differ, too; so what a GPU does is held against the others of its
    node and those with its index on other nodes (median polish, Tukey 1977), or against itself earlier in the run.
    """

    name = "straggler"
    text = "a GPU or a node that is slower than the others, which wait for it"
    how = "its clock is lower at the same load; or it works while the others wait; or its node's tasks are held up"
    needs = "activity and clocks of at least 3 GPUs"
    effect, unit = 0.15, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "clock": signals.guess(0.08, "1", "clocks of one model at one load differ by a few percent"),
        "capped": signals.guess(0.16, "1", "so much the power limit takes from who works more than the others"),
        "load": signals.guess(0.4, "1", "who trains is active more than that"),
        "work": signals.guess(0.09, "1", "ranks of one kind differ by 1 to 2 percent"),
        "sigmas": signals.guess(6, "1", "robust standard deviations of the peers"),
        "host": signals.guess(0.15, "1", "by so much more the node's tasks wait than those of the others"),
        "idle": signals.guess(0.1, "1", "by so much less they are active, with nothing else to explain it"),
        "behind": signals.guess(0.06, "1", "by so much less its GPUs are active"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return at most one finding: the slowest."""
        if len(step.gpus) < 3:
            raise CannotTell(f"there are figures of {len(step.gpus)} GPUs, and it takes 3 to say which one is slow")
        active = signals.activity(step)
        together = signals.quantile(active, 0.5, axis=0)
        busy = np.nan_to_num(together) > 0.5 * np.nan_to_num(signals.quantile(together[None, :], 0.9))[0]
        at = np.flatnonzero(busy & signals.running(active))
        if len(at) < 10:
            raise CannotTell("the GPUs were busy together in fewer than 10 samples")
        early, late = np.zeros(step.bins, bool), np.zeros(step.bins, bool)
        early[at[: len(at) // 6 + 1]] = late[at[len(at) // 2 :]] = True
        clock, work = step.gpu("clock_sm"), step.gpu("sm")
        if signals.covered(clock) < 0.3 and signals.covered(work) < 0.3:
            raise CannotTell("there are neither clocks nor profiling counters, which tell slow from little to do")
        found = [
            *self._by_clock(step, clock, active, late),
            *self._by_host(step, active, early, late),
            *(self._by_work(step, work, active, early, late) if signals.covered(work) > 0.3 else ()),
        ]
        return [max(found, key=lambda one: one.effect)] if found else []

    def _by_clock(self, step: Observed, clock: np.ndarray, active: np.ndarray, late: np.ndarray) -> list[Finding]:
        mine = signals.mean(clock, late[None, :] & (active > 0.3))
        known = ~np.isnan(mine)
        if known.sum() < 3:
            return []
        load = signals.mean(active, late[None, :])
        capped = np.nan_to_num(signals.mean(step.gpu_bits("clock_events", 0x4), late[None, :]))
        ways = [1 - mine / float(np.median(mine[known]))]
        if known.all() and len(step.nodes) > 1 and len(step.gpus) > 4:  # stages of a pipeline have other clocks
            ways.append(1 - np.exp(_polished(step, np.log(np.maximum(mine, 1)), doubled=False)))
        for behind in ways:
            row = int(np.nanargmax(behind))
            lost, slow = float(behind[row]), known & (behind > self.limit("clock"))
            if not slow.any() or slow.sum() > max(1, 0.25 * known.sum()) or load[row] < 0.7 * np.nanmedian(load):
                continue
            if capped[row] > np.median(capped) + 0.3 and lost < self.limit("capped"):
                continue  # it works more than the others, and meets its power limit
            usual = float(mine[row]) / (1 - lost)
            text = f"ran at {mine[row]:.0f} MHz, and the others at {usual:.0f} MHz"
            evidence: dict[str, float] = {"clock": round(float(mine[row])), "clock_others": round(usual)}
            return [self._of_gpu(step, row, lost, late, text, evidence)]
        return []

    def _by_work(
        self, step: Observed, work: np.ndarray, active: np.ndarray, early: np.ndarray, late: np.ndarray
    ) -> list[Finding]:
        level = np.log(np.maximum(signals.mean(work, late[None, :]), 1e-4))
        before = np.log(np.maximum(signals.mean(work, early[None, :]), 1e-4))
        load = signals.mean(active, late[None, :])
        if np.isnan(level).any() or np.nanmin(load) < 0.6 * np.nanmedian(load) or np.median(load) < self.limit("load"):
            return []  # not all take part, or not alike; or they are rarely busy, and so nobody waits
        change = level - before
        # Of one GPU a node, a slow one and a stage with more to do look alike.
        apart = len(step.nodes) >= 3 and len({gpu.index for gpu in step.gpus}) > 1
        for values, enough in ((_polished(step, level), apart), (change, not np.isnan(change).any())):
            if not enough:
                continue
            row = int(np.argmax(values))
            peers = np.delete(values, row)
            centre = float(np.median(peers))
            spread = max(1.4826 * float(np.median(np.abs(peers - centre))), 0.008)
            ahead = float(values[row] - centre)
            second = float(np.max(peers) - centre)
            usual = float(np.exp(np.median(np.delete(level, row))))
            lost = 1 - float(np.exp(-ahead))
            # All others lose alike, so that one is ahead of all of them, and nobody is between.
            waits = float(np.log(max(load[row], 1e-4)) - np.median(np.log(np.maximum(np.delete(load, row), 1e-4))))
            if waits > 0.35 * ahead:
                continue  # the others do not wait: they have less to do, as replicas of a service
            if lost > self.limit("work") and ahead > self.limit("sigmas") * spread and second < 0.5 * ahead:
                return [self._of_gpu(step, row, lost, late, "worked on while the others waited in collectives",
                                     {"work": round(float(np.exp(level[row])), 4),
                                      "work_others": round(usual, 4)})]  # fmt: skip
        return []

    def _by_host(self, step: Observed, active: np.ndarray, early: np.ndarray, late: np.ndarray) -> list[Finding]:
        nodes = list(step.nodes)
        if len(nodes) < 2:
            return []
        owners = np.array([nodes.index(gpu.node) for gpu in step.gpus])
        each = signals.mean(active, late[None, :])
        load = np.array(
            [np.nanmean(each[owners == row]) if (owners == row).any() else np.nan for row in range(len(nodes))]
        )
        if (found := self._by_idle(step, nodes, owners, load, late)) is not None:
            return [found]
        for name in _PRESSURES:
            held = signals.mean(step.host(name), late[None, :])
            if np.isnan(held).all():
                continue
            row = int(np.nanargmax(held))
            others = float(np.nanmedian(np.delete(load, row)))
            behind = 1 - float(load[row]) / others if others > 0 else 0.0
            if behind > self.limit("behind") and (why := self._held(step, row, late, (name,))):
                text = f"its GPUs were busy {signals.percent(behind)} less of the time than the others; {why[0]}"
                return [self._finding(step, nodes[row], None, behind, late, f"{nodes[row]} is behind: {text}", why[1])]
        return []

    def _held(
        self, step: Observed, row: int, late: np.ndarray, names: tuple[str, ...] = _PRESSURES
    ) -> tuple[str, dict[str, float]] | None:
        """Return what holds a node's tasks up more than those of the others, and the figures; None: it is not known."""
        for name in names:
            held = signals.mean(step.host(name), late[None, :])
            if np.isnan(np.delete(held, row)).all():
                continue
            more = float(held[row] - np.nanmedian(np.delete(held, row)))
            if more > self.limit("host"):
                figures = {name: round(float(held[row]), 3), "others": round(float(held[row]) - more, 3)}
                if name == "cpu_throttled":  # of all processors together, so it may be more than 1
                    return f"its CPU quota held up {held[row]:.1f} cores on average", figures
                share = signals.percent(min(1.0, float(held[row])))
                return f"tasks there waited for {_WAITED[name]} {share} of the time", figures
        return None

    def _by_idle(
        self, step: Observed, nodes: list[str], owners: np.ndarray, load: np.ndarray, late: np.ndarray
    ) -> Finding | None:
        """Return that a node's GPUs do as much as others and are idle more: its host holds them up."""
        work = signals.mean(step.gpu("sm"), late[None, :])
        if np.isnan(work).any() or np.isnan(load).any() or len(nodes) < 3:
            return None
        row = int(np.argmin(load))
        each = np.array([work[owners == one].mean() for one in range(len(nodes))])
        behind = 1 - float(load[row] / np.median(np.delete(load, row)))
        less = 1 - float(each[row] / np.median(np.delete(each, row)))
        second = 1 - float(np.min(np.delete(load, row)) / np.median(np.delete(load, row)))
        if behind < self.limit("idle") or less > 0.4 * behind or second > 0.4 * behind:
            return None
        text, figures = self._held(step, row, late) or ("", {})
        said = (
            f"{nodes[row]} is behind: its GPUs did the same work as the others, and were busy "
            f"{signals.percent(behind)} less of the time, as they waited for their host{'; ' if text else ''}{text}"
        )
        figures = {"active": round(float(load[row]), 3), "work_less": round(less, 3), **figures}
        return self._finding(step, nodes[row], None, behind, late, said, figures)

    def _of_gpu(
        self, step: Observed, row: int, lost: float, late: np.ndarray, what: str, evidence: Mapping[str, float]
    ) -> Finding:
        gpu, text = step.gpus[row], f"{signals.called(step, row)} is slower than the others by "
        return self._finding(step, gpu.node, gpu.uuid or None, float(lost), late,
                             f"{text}{signals.percent(float(lost))}: it {what}", evidence)  # fmt: skip

    def _finding(
        self,
        step: Observed,
        node: str,
        subject: str | None,
        lost: float,
        late: np.ndarray,
        text: str,
        evidence: Mapping[str, float],
    ) -> Finding:
        said = _verdict(step, node)
        at = np.flatnonzero(late)
        return Finding(
            lost, text + (f"; vetting said of {node}: {said}" if said else ""),
            f"leave {node} out (--exclude={node}) and show it to the site; vetting with gpu evals measures it alone",
            step.time(at[0]), step.time(at[-1] + 1), node, subject, {**evidence, **({"verdict": said} if said else {})},
        )  # fmt: skip


def _polished(step: Observed, values: np.ndarray, doubled: bool = True) -> np.ndarray:
    """Return what is left of values beside what a node's GPUs, and those of an index, have in common.

    Of two GPUs of a node each is half of what they have in common; `doubled` puts that right.
    """
    nodes = sorted({gpu.node for gpu in step.gpus})
    indices = sorted({gpu.index for gpu in step.gpus})
    table = np.full((len(nodes), len(indices)), np.nan)
    where = [(nodes.index(gpu.node), indices.index(gpu.index)) for gpu in step.gpus]
    for place, value in zip(where, values, strict=True):
        table[place] = value
    for _ in range(3):
        if len(indices) > 1:
            table -= signals.quantile(table, 0.5)[:, None]
        table -= signals.quantile(table, 0.5, axis=0)[None, :]
    return np.array([table[place] for place in where]) * (2 if doubled and len(indices) == 2 else 1)


def _verdict(step: Observed, node: str) -> str:
    """Return what vetting last said of a node, or ''."""
    events = step.table("events", ["node", "kind", "text"])
    told = [row["text"] for row in events.to_pylist() if row["kind"] == "vet.verdict" and row["node"] == node]
    return str(told[-1] or "")[:200] if told else ""
