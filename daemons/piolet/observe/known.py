"""Gathers what is known of a job, with the rights of who asks: Slurm, the user's own files, the central service.

Each source may be missing, and then `missing` says so. Users see their own jobs, and staff all: what another user's
files say is read as data, and files of others than the asker are looked for only where the asker may look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from piolet.base import hostlist
from piolet.base.errors import PioletError, SlurmError, UsageError
from piolet.environment import pinned
from piolet.observe import changes, marks, results, why
from piolet.observe.job import VERSION, Environment, Happened, Job, Run, Score, Step, Vetting
from piolet.slurm import onejob
from piolet.slurm.onejob import JobName, ToldRun

NODES_MOST = 32
EVENTS_MOST = 500
_BEFORE_S, _AFTER_S = 5.0, 300.0  # of a job: a node's fault may be told after it
_APART_S = 60.0  # of the clocks of a login node and of Slurm
_GOOD_S = 30 * 86400.0  # so long ago a good run may have been
_QUIET = ("node.heartbeat", "node.start", "vet.verdict")

Ask = Callable[[str, float], dict[str, Any]]
"""Asks the central service of a node, so many seconds back, and returns its answer. Raises PioletError."""


@dataclass(frozen=True)
class Sources:
    """Whom to ask. `central` is None where there is no such service; `staff`: who asks may see all jobs."""

    variables: Mapping[str, str]
    uid: int
    staff: bool
    directory: str
    central: Ask | None
    sacct: str = "sacct"
    scontrol: str = "scontrol"


def runs(name: JobName, sources: Sources) -> tuple[list[ToldRun], list[str]]:
    """Return what Slurm tells of the runs of a job that who asks may see. Raises SlurmError, UsageError."""
    found, missing = onejob.runs_of(name, sources.sacct, sources.scontrol)
    # 112 is the leader of a heterogeneous job, or a task of an array, as well: they say 112+0, 112_1.
    if not found:
        raise SlurmError(f"Slurm knows no job {name.of_job}", "piolet history lists yours")
    others = [one for one in found if one.uid is not None and one.uid != sources.uid]
    if others and not sources.staff:
        raise UsageError(
            f"job {name.of_job} is {others[0].user or f'account {others[0].uid}'}'s, not yours",
            "[central] staff says who sees all jobs",
        )
    return found, missing


def job(
    name: JobName,
    found: Sequence[ToldRun],
    missing: Sequence[str],
    sources: Sources,
    clock: float,
    *,
    quick: bool = False,
) -> Job:
    """Return what is known of one job, whose runs these are; `clock` is the time now.

    quick    without what takes long and says not why it ended: scores, changes, marks
    """
    last = found[-1]
    not_known = list(missing)
    if name.step and last.steps and name.step not in {one.name for one in last.steps}:
        there = ", ".join(one.name for one in last.steps)
        raise UsageError(f"job {last.shown} has no step {name.step}", f"there are: {there}")
    own = last.uid in (None, sources.uid)
    view = replace(_bare(last, name.step), earlier=tuple(_run(one) for one in found[:-1]))
    root = results.root_of(sources.variables, sources.directory, last.user)
    vettings, scores, where = [], [], {}
    environments: tuple[Environment, ...] = ()
    if own or sources.directory:
        vettings = [one for path in _vet_files(root, view) if (one := vetting(path, view)) is not None]
        scores = [] if quick else _scores(root, view, not_known)
    if own:
        environments = _environments(sources.variables, view)
    else:
        not_known.append(f"environment: only {last.user or 'its owner'} has it")
    events = _events(view, sources, not_known, clock)
    vettings = vettings or _decided(events)
    if last.output:
        where["output"] = last.output
    lies = {"vetting": [one.file for one in vettings], "score": [one.directory for one in scores]}
    for kind, paths in lies.items():
        where |= {kind if at == 0 else f"{kind} {at + 1}": path for at, path in enumerate(paths) if path}
    view = replace(
        view, environments=environments, vettings=tuple(vettings), scores=tuple(scores), events=tuple(events),
        files=where, missing=tuple(not_known),
    )  # fmt: skip
    view = replace(view, why=why.reasons(view))
    if quick or not own:
        return view
    said = marks.of_job(root, view.number, name.step)
    return _with_changes(replace(view, marks=marks.summed(said)), sources, clock)


def _with_changes(view: Job, sources: Sources, clock: float) -> Job:
    """Return it with what changed since the last good run of its name."""
    try:
        known = onejob.last_of(view.user, clock - _GOOD_S, sources.sacct, good=view.name)
    except SlurmError:
        return view  # without accounting nothing is known of runs before, which is said already
    good = changes.last_good(view, known)
    if good is None:
        return view
    root = results.root_of(sources.variables, sources.directory, view.user)
    before = _bare(good, "")
    before = replace(
        before, environments=_environments(sources.variables, before), scores=tuple(_scores(root, before, []))
    )
    return replace(view, changes=changes.between(before, view, _compared(before, view)))


def _compared(before: Job, now: Job) -> dict[str, changes.Compared | str]:
    """Return how the saturations of steps differ that both have."""
    from piolet.samples.dataset import open_dataset
    from piolet.score.compare import compare
    from piolet.score.summary import summarise

    old = changes.by_step(before.scores)
    found: dict[str, changes.Compared | str] = {}
    for step, score_now in changes.by_step(now.scores).items():
        if step not in old:
            continue
        try:
            two = [summarise(open_dataset(Path(one.directory)), None, detail=False) for one in (old[step], score_now)]
            done = compare(*two)
            found[step] = changes.Compared(done.low, done.high, done.unlike)
        except PioletError as error:
            found[step] = error.message
    return found


def _bare(told: ToldRun, step: str) -> Job:
    """Return what Slurm tells of a job."""
    return Job(
        VERSION, told.shown, told.number, step, told.name, told.user, told.uid, told.account, told.partition,
        told.cluster, told.command, told.gpus, told.submit, told.limit_s, told.reason, _run(told),
    )  # fmt: skip


def _run(told: ToldRun) -> Run:
    steps = tuple(
        Step(one.name, one.title, one.state, one.status, one.signal, one.nodes, one.start, one.end)
        for one in told.steps
    )
    return Run(
        told.run, told.state, told.status, told.signal, told.by, told.nodes, told.start,
        told.end if told.is_over else None, steps,
    )  # fmt: skip


# -- the user's own files


def _environments(variables: Mapping[str, str], view: Job) -> tuple[Environment, ...]:
    try:
        found = pinned.find(variables, f"{view.number}.{view.step}" if view.step.isdecimal() else str(view.number))
    except PioletError:
        return ()  # its steps had none, or they were started elsewhere
    made: dict[str, Environment] = {}
    began = min((run.start for run in (*view.earlier, view.now) if run.start), default=float("inf"))
    for one in found:
        if not began - _APART_S <= one.began <= (view.now.end or float("inf")) + _APART_S:
            continue  # of another cluster, or of an earlier job of that number
        text = pinned.text(one)
        body = text.partition("\n")[2]
        image = one.definition.image
        if (before := made.get(body)) is not None:
            made[body] = replace(before, steps=(*before.steps, one.step))
            continue
        made[body] = Environment(
            (one.step,), one.definition.request, pinned.pinned_name(one.definition) if image else None,
            image.digest if image else None, one.definition.files, body, one.secret,
        )  # fmt: skip
    return tuple(made.values())


def _vet_files(root: str | None, view: Job) -> list[Path]:
    return [*results.of_job(root, results.VET, view.number), Path.cwd() / f"vet-{view.number}.json"]


def vetting(path: Path, view: Job) -> Vetting | None:
    """Return the vetting in a result file, None: it is none, or of an earlier job of that number."""
    from piolet.vet import results as vet_results

    try:
        said = vet_results.read(str(path))
    except PioletError:
        return None
    started = said.get("started")
    began = view.earlier[0].start if view.earlier else view.now.start
    if not isinstance(started, (int, float)) or (began and started < began - _APART_S):
        return None
    by_state: dict[str, list[str]] = {"good": [], "warned": [], "bad": []}
    reasons: dict[str, tuple[str, ...]] = {}
    for node, told in said["nodes"].items():
        state = told.get("state") if isinstance(told, dict) else None
        if state in by_state:
            by_state[state].append(node)
            reasons[node] = tuple(map(str, told.get("reasons", ())))
    protocol = said.get("protocol")
    seconds = said.get("seconds")
    return Vetting(
        str(protocol.get("name", "")) if isinstance(protocol, dict) else "", float(started),
        float(seconds) if isinstance(seconds, (int, float)) else None, tuple(by_state["good"]),
        tuple(by_state["warned"]), {node: reasons[node] for node in by_state["bad"]},
        tuple(map(str, said.get("chosen") or ())), str(said.get("abort") or ""), str(path),
    )  # fmt: skip


def _scores(root: str | None, view: Job, missing: list[str]) -> list[Score]:
    directories = results.of_job(root, results.SCORE, view.number)
    directories += sorted(Path.cwd().glob(f"piolet-score-{view.number}.*"))
    found = []
    for path in directories:
        try:
            one = score(path)
        except PioletError as error:
            missing.append(f"score: {error.message}")
            continue
        if one is not None and (not view.step or one.step.partition("-")[0].endswith(f".{view.step}")):
            found.append(one)
    return found


def score(directory: Path) -> Score:
    """Return what a step made of its GPUs. Raises PioletError: the data set cannot be read."""
    from piolet.samples.dataset import open_dataset
    from piolet.score.summary import HEADLINES, summarise

    data = open_dataset(directory)
    summary = summarise(data, None, detail=False)
    software = {_versions(node.facts.header.get("software")) for node in data.nodes}
    return Score(
        summary.name, {name: getattr(summary, name).as_dict() for name in HEADLINES}, int(summary.score.gpus),
        summary.seconds, tuple(sorted(software - {""})), summary.simulated,
        tuple(f"{one.seen}: {one.do}" for one in summary.advice), str(directory),
    )  # fmt: skip


def _versions(said: object) -> str:
    known = said if isinstance(said, dict) else {}
    return ", ".join(f"{name} {str(known[name])[:64]}" for name in ("driver", "kernel") if known.get(name))


# -- the central service


def _events(view: Job, sources: Sources, missing: list[str], clock: float) -> list[Happened]:
    if sources.central is None:
        missing.append("events of its nodes: there is no central service here")
        return []
    spans = [run for run in (*view.earlier, view.now) if run.start]
    nodes = list(dict.fromkeys(node for run in spans for node in run.nodes))
    if not nodes:
        return []
    found: dict[tuple[Any, ...], Happened] = {}
    if len(nodes) > NODES_MOST:
        nodes = _of_interest(view, nodes)
        missing.append(f"events: of {hostlist.compress(nodes)} only, {NODES_MOST} nodes at most are asked for")
    first = min(run.start or clock for run in spans)
    for node in nodes:
        try:
            said = sources.central(node, max(clock - first + _APART_S, 1.0))
        except PioletError as error:
            if getattr(error, "status", 0) == 400:
                missing.append(f"events of {node}: the central service has none")
                continue
            missing.append(f"events of its nodes: {error.message}")
            break
        if not said.get("complete", True):
            missing.append(f"events of {node}: the central service told the latest ones only")
        for record in said.get("records", ()):
            if isinstance(record, dict) and (one := happened(record)) and _concerns(record, one, view, spans):
                found[record.get("epoch"), record.get("seq"), node] = one
    events = sorted(found.values(), key=lambda one: one.time)
    if len(events) > EVENTS_MOST:
        missing.append(f"events: the first {len(events) - EVENTS_MOST} of {len(events)} are left out")
    return events[-EVENTS_MOST:]


def _of_interest(view: Job, nodes: list[str]) -> list[str]:
    """Return the nodes to ask for where there are too many: those of steps that failed first."""
    bad = [node for step in view.now.steps if step.status or step.signal for node in step.nodes]
    return list(dict.fromkeys([*bad, *nodes]))[:NODES_MOST]


def _concerns(record: Mapping[str, Any], one: Happened, view: Job, spans: Sequence[Run]) -> bool:
    """Return whether a record is of the job, or of one of its nodes while it ran there."""
    if one.kind in _QUIET:
        return False
    number = record.get("job")
    if number is not None:
        return number == view.number and (not view.step or not one.step or one.step == view.step)
    if one.source == "user":
        return one.body.get("claimed") == view.number
    return any(
        one.node in run.nodes and (run.start or 0.0) - _BEFORE_S <= one.time <= (run.end or float("inf")) + _AFTER_S
        for run in spans
    )


def happened(record: Mapping[str, Any]) -> Happened | None:
    """Return an event as the central service tells it, None: it is none."""
    body = record.get("body")
    body = body if isinstance(body, dict) else {}
    try:
        return Happened(
            float(record["time"]) - float(record.get("offset") or 0.0), str(record["node"]), str(record["kind"]),
            str(record["source"]), str(record.get("severity", "")), str(record.get("step", "")),
            str(record.get("subject", "")), _words(str(record["kind"]), body), body,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def _words(kind: str, body: Mapping[str, Any]) -> str:
    for key in ("text", "reason"):
        if body.get(key):
            return str(body[key])[:300]
    if kind == "step.outcome":
        how = f"signal {body['signal']}" if body.get("signal") else f"status {body.get('status', 0)}"
        first = f", task {body['task']} first" if body.get("tasks", 1) != 1 and "task" in body else ""
        many = f"{body.get('tasks', 1)} tasks" if body.get("tasks", 1) != 1 else f"task {body.get('task', '?')}"
        because = f" ({body['why']})" if body.get("why") not in (None, "exit") else ""
        return f"{many} ended with {how}{first}{because}"
    if kind == "slurm.job_end":
        return f"{body.get('state', '?')}"
    if kind == "vet.decision":
        chosen, left_out = (body.get(key, "none") for key in ("chosen", "excluded"))
        return f"'{body.get('protocol', '')}': chosen {chosen}, left out {left_out}"
    return ", ".join(f"{key} {value}" for key, value in body.items() if isinstance(value, (str, int, float)))[:300]


def _decided(events: Sequence[Happened]) -> list[Vetting]:
    """Return vettings as srun told them to the node, for those whose result files are gone or elsewhere."""
    found = []
    for one in events:
        if one.kind != "vet.decision":
            continue
        state = one.body.get("state")
        state = state if isinstance(state, dict) else {}
        why_not = one.body.get("why")
        why_not = why_not if isinstance(why_not, dict) else {}
        bad = _expanded(one.body.get("excluded") or state.get("bad"))
        left_out = {node: tuple(map(str, why_not.get(node) or ())) for node in bad}
        said = (str(one.body.get("protocol", "")), one.time, None)
        nodes = (_expanded(state.get("good")), _expanded(state.get("warned")), left_out)
        found.append(Vetting(*said, *nodes, _expanded(one.body.get("chosen")), str(one.body.get("abort", "")), ""))
    return found


def _expanded(text: Any) -> tuple[str, ...]:
    try:
        return tuple(hostlist.expand(text)) if isinstance(text, str) and text else ()
    except PioletError:
        return ()
