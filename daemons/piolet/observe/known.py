"""Gathers what is known of a job, with the rights of who asks: Slurm, the user's own files, the central service.

Each source may be missing, and then `missing` says so. Users see their own jobs, and staff all: what another user's
files say is read as data, and files of others than the asker are looked for only where the asker may look.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from piolet.base.errors import PioletError, SlurmError, UsageError
from piolet.environment import pinned
from piolet.observe import changes, happened, marks, results, why
from piolet.observe.happened import Ask
from piolet.observe.job import VERSION, Environment, Finding, Job, Run, Score, Step, Vetting
from piolet.observe.reading import StepData, open_step
from piolet.slurm import onejob
from piolet.slurm.onejob import JobName, ToldRun

_APART_S = 60.0  # of the clocks of a login node and of Slurm
_GOOD_S = 30 * 86400.0  # so long ago a good run may have been


Fetch = Callable[[int, str, Path], list[Path]]


@dataclass(frozen=True)
class Sources:
    """Whom to ask.

    staff       who asks may see all jobs
    directory, cluster    where users' results are (results.py)
    central     None where there is no such service, as is
    steps       fetches meta.json and findings of a job's steps, or of one, into directories below another
    """

    variables: Mapping[str, str]
    uid: int
    staff: bool
    directory: str
    cluster: str
    central: Ask | None
    steps: Fetch | None = None
    sacct: str = "sacct"
    scontrol: str = "scontrol"
    sacctmgr: str = "sacctmgr"

    def place(self, user: str) -> str | None:
        """Return where a user's results are."""
        return results.place_of(self.variables, self.directory, user, self.cluster)


def runs(name: JobName, sources: Sources) -> tuple[list[ToldRun], list[str]]:
    """Return what Slurm tells of the runs of a job that who asks may see. Raises SlurmError, UsageError."""
    found, missing = onejob.runs_of(name, sources.sacct, sources.scontrol)
    # 112 is the leader of a heterogeneous job, or a task of an array, as well: they say 112+0, 112_1.
    if not found:
        raise SlurmError(f"Slurm knows no job {name.of_job}", "piolet history lists yours")
    others = [one for one in found if one.uid != sources.uid]
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
    own = last.uid == sources.uid
    view = replace(bare(last, name.step), earlier=tuple(_run(one) for one in found[:-1]))
    root = sources.place(last.user)
    vettings, scores, where = [], [], {}
    environments: tuple[Environment, ...] = ()
    if own or sources.directory:
        vettings = [one for path in _vet_files(root, view) if (one := vetting(path, view)) is not None]
    if own:
        scores = [] if quick else _scores(root, view, not_known)
        environments = _environments(sources.variables, view)
    else:
        # A data set is Parquet that its owner may have written: no parser of that with the rights of staff.
        not_known.append(f"environment and scores: only {last.user or 'its owner'} has them")
    events = happened.events(view, sources.central, not_known, clock)
    if last.state == "NODE_FAIL" and not any(one.kind == happened.NODE_STATE for one in events):
        events += happened.node_states(view, sources.sacctmgr)  # the central service asks for them now and then
    vettings = vettings or happened.decided(events)
    found_in = _findings(view, sources, not_known)
    if last.output:
        where["output"] = last.output
    lies = {"vetting": [one.file for one in vettings], "score": [one.directory for one in scores]}
    for kind, paths in lies.items():
        where |= {kind if at == 0 else f"{kind} {at + 1}": path for at, path in enumerate(paths) if path}
    view = replace(
        view, environments=environments, vettings=tuple(vettings), scores=tuple(scores),
        events=tuple(events), findings=tuple(found_in),
        files=where, missing=tuple(not_known),
    )  # fmt: skip
    view = replace(view, why=why.reasons(view))
    if quick or not own:
        return view
    return _with_changes(replace(view, marks=marks.summed(own_marks(root, view))), sources, clock)


def own_marks(place: str | None, view: Job) -> list[marks.Said]:
    """Return the marks of a job, or of its step, in a user's results: not those of an earlier job of that number."""
    ended = (view.now.end or float("inf")) + _APART_S
    return [
        one for one in marks.of_job(place, view.number, view.step)
        if one.time is None or _began(view) - _APART_S <= one.time <= ended
    ]  # fmt: skip


def _with_changes(view: Job, sources: Sources, clock: float) -> Job:
    """Return it with what changed since the last good run of its name."""
    try:
        known = onejob.last_of(view.user, clock - _GOOD_S, sources.sacct, good=view.name)
    except SlurmError:
        return view  # without accounting nothing is known of runs before, which is said already
    good = changes.last_good(view, known)
    if good is None:
        return view
    root = sources.place(view.user)
    before = bare(good, "")
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


def bare(told: ToldRun, step: str) -> Job:
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
        name = f"{view.number}.{view.step}" if view.step.isdecimal() else str(view.number)
        found = pinned.find(variables, name, lambda known: view.cluster or pinned.own_cluster(known))
    except PioletError:
        return ()  # its steps had none, or they were started elsewhere
    made: dict[str, Environment] = {}
    for one in found:
        if not _began(view) - _APART_S <= one.began <= (view.now.end or float("inf")) + _APART_S:
            continue  # of an earlier job of that number, or of another cluster where an old release did not say it
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
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, OSError):
            missing.append(f"score: {path} is no data set that can be read")  # somebody else may have written it
            continue
        of_step = not view.step or one.step.partition("-")[0].endswith(f".{view.step}")
        if of_step and _began(view) - _APART_S <= one.began <= (view.now.end or float("inf")) + _APART_S:
            found.append(one)
    return found


def _began(view: Job) -> float:
    return min((run.start for run in (*view.earlier, view.now) if run.start), default=float("inf"))


def score(directory: Path) -> Score:
    """Return what a step made of its GPUs. Raises PioletError: the data set cannot be read."""
    from piolet.samples.dataset import open_dataset
    from piolet.score.summary import HEADLINES, summarise

    data = open_dataset(directory)
    summary = summarise(data, None, detail=False)
    software = {_versions(node.facts.header.get("software")) for node in data.nodes}
    return Score(
        summary.name, summary.began, {name: getattr(summary, name).as_dict() for name in HEADLINES},
        int(summary.score.gpus),
        summary.seconds, tuple(sorted(software - {""})), summary.simulated,
        tuple(f"{one.seen}: {one.do}" for one in summary.advice), str(directory),
    )  # fmt: skip


def _versions(said: object) -> str:
    known = said if isinstance(said, dict) else {}
    return ", ".join(f"{name} {str(known[name])[:64]}" for name in ("driver", "kernel") if known.get(name))


# -- what the central service keeps of steps


def _findings(view: Job, sources: Sources, missing: list[str]) -> list[Finding]:
    if sources.steps is None:
        return []
    with tempfile.TemporaryDirectory(prefix="piolet-job-") as room:
        try:
            steps = sources.steps(view.number, view.step, Path(room))
            opened = [step for path in steps if _is_of(step := open_step(path), view)]
            return distinct(one for step in opened for one in finding(step))
        except PioletError as error:
            missing.append(f"findings: {error.message}")
            return []


def _is_of(step: StepData, view: Job) -> bool:
    return _began(view) - _APART_S <= step.start / 1e9 <= (view.now.end or float("inf")) + _APART_S


def distinct(found: Iterable[Finding]) -> list[Finding]:
    """Return findings without those that several steps of a job share: a batch script's node is in other steps, too."""
    kept: list[Finding] = []
    for one in sorted(found, key=lambda one: not one.step.partition(".")[2][:1].isdecimal()):
        same = (two for two in kept if (two.detector, two.subject) == (one.detector, one.subject) and _meet(one, two))
        if all(two.step == one.step or (None not in (one.node, two.node) and one.node != two.node) for two in same):
            kept.append(one)
    return kept


def _meet(one: Finding, two: Finding) -> bool:
    ends = (one.start or 0.0, one.end or float("inf"), two.start or 0.0, two.end or float("inf"))
    return ends[0] <= ends[3] and ends[2] <= ends[1]


def finding(step: StepData) -> list[Finding]:
    """Return what detectors found in a step."""
    rows = step.table("findings").to_pylist()
    return [
        Finding(
            step.name, f"{row['detector']} {row['version']}", row["node"], row["subject"],
            row["start"].timestamp() if row["start"] else None, row["end"].timestamp() if row["end"] else None,
            row["confidence"], str(row["text"] or ""), str(row["advice"] or ""),
        )
        for row in rows
    ]  # fmt: skip
