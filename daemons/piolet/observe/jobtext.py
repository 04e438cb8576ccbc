"""`piolet job`, `piolet why` and `piolet history` as text. Pure: times are said in this machine's zone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from piolet.base import hostlist
from piolet.base.texts import columns, counted
from piolet.observe.job import Changes, Environment, Happened, Job, Mark, Reason, Run, Vetting
from piolet.observe.why import span
from piolet.slurm.onejob import ToldRun
from piolet.steps import identity

_EVENTS, _FINDINGS, _LINES, _LONG = 12, 10, 40, 300
_PERCENT = ("saturation", "utilisation", "coverage")


def whole(job: Job, width: int = 100) -> list[str]:
    """Return everything that is known of a job; sections of which nothing is known are left out."""
    of_step = f", step {job.step}" if job.step else ""
    lines = [f"job {job.job}{of_step}" + (f" ({job.name})" if job.name else "")]
    lines += _table(_facts(job))
    lines += ["", *reasons(job.why[:3])]
    sections: list[tuple[str, list[str]]] = [
        ("steps", _steps(job.now, job.step)),
        ("environment", [line for one in job.environments for line in _environment(one)]),
        ("vetting", [line for one in job.vettings for line in _vetting(one)]),
        ("score", [line for one in job.scores for line in _score(one.figures, one.step, one.simulated)]),
        ("findings", [f"{one.node or 'the step'}: {one.text}" for one in job.findings[:_FINDINGS]]),
        ("marks", marks(job.marks)),
        ("events", _events(job)),
        ("changes", _changes(job.changes) if job.changes else []),
        ("files", _table(list(job.files.items()), indent=0)),
        ("not known", list(job.missing)),
    ]
    for title, body in sections:
        if body:
            lines += ["", title, *(f"  {line}"[:1000].rstrip() for line in body)]
    return lines


def reasons(found: Sequence[Reason]) -> list[str]:
    """Return reasons with their evidence and what to do, the first first."""
    lines = []
    for at, one in enumerate(found):
        lines.append(f"why: {one.sentence}" if at == 0 else f"also: {one.sentence}")
        lines += [f"  {text}" for text in one.evidence]
        if one.advice:
            lines.append(f"  hint: {one.advice}")
    return lines


def tasks(runs: Sequence[ToldRun]) -> list[str]:
    """Return a line for each task of an array or component of a heterogeneous job."""
    rows = [("job", "state", "began", "took", "nodes", "exit")]
    rows += [
        (one.shown, one.state, moment(one.start), _took(one), _nodes(one.nodes), _exit(one.status, one.signal))
        for one in runs
    ]
    return [line.rstrip() for line in columns(rows)]


def history(runs: Sequence[ToldRun], noted: dict[int, str]) -> list[str]:
    """Return a line for each job, the last one first; `noted` says more of some, by their numbers."""
    rows = [("job", "name", "state", "began", "took", "nodes", "GPUs", "exit", "")]
    for one in reversed(runs):
        gpus = "" if one.gpus is None else str(one.gpus)
        label = one.shown + identity.run_suffix(one.run)
        exits = _exit(one.status, one.signal) if one.is_over else ""
        nodes = str(len(one.nodes)) if one.nodes else ""
        more = noted.get(one.number, "")
        rows.append((label, one.name[:24], one.state, moment(one.start), _took(one), nodes, gpus, exits, more))
    return [line.rstrip() for line in columns(rows, right=(5, 6))]


def moment(when: float | None) -> str:
    """Return a time as people write it, '-' where it is not known."""
    return "-" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _facts(job: Job) -> list[tuple[str, str]]:
    run = job.now
    state = run.state + (f", {_exit(run.status, run.signal)}" if run.status or run.signal else "")
    rows = [("state", state)]
    if job.user:
        rows.append(("user", f"{job.user}" + (f", account {job.account}" if job.account else "")))
    if run.start:
        ended = f" to {moment(run.end)} ({span(run.end - run.start)})" if run.end else ""
        rows.append(("ran", f"{moment(run.start)}{ended}" + (f", limit {span(job.limit)}" if job.limit else "")))
    elif job.submit:
        rows.append(("submitted", moment(job.submit)))
    if run.nodes:
        gpus = f", {counted(job.gpus, 'GPU')}" if job.gpus else ""
        rows.append(("nodes", f"{_nodes(run.nodes)} ({counted(len(run.nodes), 'node')}{gpus}), {job.partition}"))
    for one in job.earlier:
        rows.append((f"run {one.run}", f"{one.state} on {_nodes(one.nodes)}, from {moment(one.start)}"))
    if job.command:
        rows.append(("command", job.command[:200]))
    return rows


def _steps(run: Run, only: str) -> list[str]:
    rows = [
        (
            one.name,
            one.title[:24],
            one.state,
            _exit(one.status, one.signal),
            _spent(one.start, one.end),
            _nodes(one.nodes),
        )
        for one in run.steps
        if one.name != "extern" and only in ("", one.name)
    ]
    shown = [line.rstrip() for line in columns(rows[:_LINES])]
    return shown + ([f"and {len(rows) - _LINES} more: --json has them"] if len(rows) > _LINES else [])


def _environment(one: Environment) -> Iterator[str]:
    yield f"{', '.join(one.steps[:5])}: --environment={one.request}"
    image = one.image or "none: on the host"
    yield f"  image {image}" + ("" if one.digest or not one.image else " (a file: what is in it may have changed)")
    if one.files:
        yield f"  from {', '.join(one.files)}"
    if one.secrets:
        yield f"  not kept, since they are secrets: {', '.join(one.secrets)}"
    yield f"  the whole of it: piolet env show {one.steps[0]}"


def _vetting(one: Vetting) -> Iterator[str]:
    good = len(one.good) + len(one.warned)
    yield f"'{one.protocol}': {good} of {counted(good + len(one.left_out), 'node')} good" + (
        f", {one.seconds:.1f} s" if one.seconds is not None else ""
    )
    for node, texts in list(one.left_out.items())[:_FINDINGS]:
        yield f"  left out: {node}: {'; '.join(texts) or 'no reason is known'}"
    if len(one.left_out) > _FINDINGS:
        yield f"  and {len(one.left_out) - _FINDINGS} more"
    if one.abort:
        yield f"  no application was started: {one.abort}"


def _score(figures: dict[str, dict[str, object]], step: str, simulated: str) -> Iterator[str]:
    said = [f"{name} {text}" for name in _PERCENT if (text := interval(figures.get(name, {}), 100.0, " %"))]
    energy = interval(figures.get("energy", {}), 1 / 3.6e6, " kWh")
    said += [f"energy {energy}"] if energy else []
    yield f"step {step}: {', '.join(said) or 'nothing can be said'}" + (" (simulated)" if simulated else "")


def interval(figure: dict[str, object], factor: float = 1.0, unit: str = "") -> str:
    """Return a figure of a score as a value, a range or a bound; '' where nothing is said."""
    low, high = figure.get("low"), figure.get("high")
    low_text = f"{low * factor:.3g}" if isinstance(low, (int, float)) else ""
    high_text = f"{high * factor:.3g}" if isinstance(high, (int, float)) else ""
    if low_text and high_text:
        return f"{low_text}{unit}" if low_text == high_text else f"{low_text} to {high_text}{unit}"
    if low_text:
        return f"at least {low_text}{unit}"
    return f"at most {high_text}{unit}" if high_text else ""


def marks(found: Sequence[Mark]) -> list[str]:
    """Return a line for each name."""
    rows = []
    for one in found:
        odd = f", {one.not_numbers} not a number" if one.not_numbers else ""
        if one.first is None or one.last is None:
            between = "no number"
        else:
            between = f"{one.first:.6g} to {one.last:.6g}" if one.count > 1 else f"{one.last:.6g}"
        rows.append((one.name, between, f"{counted(one.count, 'value')} from {one.origin}{odd}"))
    return columns(rows)


def _events(job: Job) -> list[str]:
    order = {"fatal": 0, "warn": 1}
    # How it ended stands above, and most tasks end well.
    of_note = [one for one in job.events if one.kind != "slurm.job_end" and not _is_good(one)]
    worst = sorted(of_note, key=lambda one: (order.get(one.severity, 2), one.time))[:_EVENTS]
    rows = [(moment(one.time), one.node, one.kind, one.text[:160]) for one in sorted(worst, key=lambda one: one.time)]
    more = len(of_note) - len(worst)
    return [line.rstrip() for line in columns(rows)] + ([f"and {more} more: --json has them"] if more else [])


def _is_good(one: Happened) -> bool:
    return one.kind == "step.outcome" and not one.body.get("status") and not one.body.get("signal")


def _changes(one: Changes) -> list[str]:
    lines = [f"since job {one.since}, the last good run of that name ({moment(one.ended)}):"]
    lines += [f"  {_cut(change.text)}" for change in one.changes] or ["  nothing that is known"]
    lines += [f"  as before: {', '.join(one.same)}"] if one.same else []
    return lines + [f"  not compared: {text}" for text in one.unknown]


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def _table(rows: Sequence[tuple[str, str]], indent: int = 2) -> list[str]:
    return [" " * indent + line for line in columns(rows)]


def _took(run: ToldRun) -> str:
    return _spent(run.start, run.end if run.is_over else None)


def _spent(start: float | None, end: float | None) -> str:
    return "-" if start is None or end is None else span(end - start)


def _nodes(nodes: Sequence[str]) -> str:
    return hostlist.compress(nodes) if nodes else "-"


def _exit(status: int, signal: int) -> str:
    return f"signal {signal}" if signal else f"status {status}" if status else "0"
