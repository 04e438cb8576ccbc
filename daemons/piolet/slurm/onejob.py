"""All that Slurm tells of one job, or of a user's last ones: its runs, their steps, how they ended.

Asked with the rights of who asks: Slurm decides what that is. Accounting (`sacct`) knows the past; where there is none,
slurmctld (`scontrol`) knows a job for some minutes after its end, and no steps of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from piolet.base import hostlist
from piolet.base.errors import PioletError, SlurmError, UsageError
from piolet.slurm.asking import ask

_NAME = re.compile(r"(\d{1,10})(?:_(\d{1,10})|\+(\d{1,4}))?(?:\.(\d{1,10}|batch|extern|interactive))?")
# What users choose comes last: it may have the separator in it.
_FIELDS = (
    "JobIDRaw", "JobID", "UID", "User", "Account", "Partition", "Cluster", "State", "ExitCode", "NodeList",
    "AllocTRES", "Submit", "Start", "End", "TimelimitRaw", "Reason", "Restarts", "StdOut", "JobName", "SubmitLine",
)  # fmt: skip
_SEPARATOR = "\x1f"
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")
_UNLIMITED = 365 * 24 * 60  # minutes: what slurmdbd has of no limit
OVER = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
    "REQUEUED", "REVOKED",
})  # fmt: skip


@dataclass(frozen=True)
class JobName:
    """What somebody typed: 112, 112_1 (a task of an array), 112+1 (a component), each with .STEP or without."""

    job: int
    task: int | None = None
    component: int | None = None
    step: str = ""

    @property
    def of_job(self) -> str:
        """The job's name without a step."""
        task = "" if self.task is None else f"_{self.task}"
        return f"{self.job}{task}" + ("" if self.component is None else f"+{self.component}")


@dataclass(frozen=True)
class ToldStep:
    """A step; `start` and `end` in seconds since 1970, None: not known."""

    name: str
    title: str
    state: str
    status: int
    signal: int
    nodes: tuple[str, ...]
    start: float | None
    end: float | None


@dataclass(frozen=True)
class ToldRun:
    """A run of a job; one that was requeued has several, which `run` counts from 0.

    shown    112, 112_1 or 112+1; `number` is the number that its processes have
    state    Slurm's word; `by` who cancelled it (a number), '' nobody
    limit_s  its time limit, None: none, or not known
    output   the file that its script's output goes to, '' not known
    """

    shown: str
    number: int
    run: int
    name: str
    user: str
    uid: int | None
    account: str
    partition: str
    cluster: str
    state: str
    by: str
    status: int
    signal: int
    nodes: tuple[str, ...]
    gpus: int | None
    submit: float | None
    start: float | None
    end: float | None
    limit_s: float | None
    reason: str
    output: str
    command: str
    steps: tuple[ToldStep, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER


def parse_name(text: str) -> JobName:
    """Return the job or step that `text` names. Raises UsageError."""
    match = _NAME.fullmatch(text)
    if match is None or not 0 < int(match[1]) < 2**32:
        raise UsageError(f"'{text[:60]}' is no job", "write 112, 112.0, or 112_1 of an array, 112+1 of several parts")
    task, component = (int(part) if part else None for part in (match[2], match[3]))
    return JobName(int(match[1]), task, component, match[4] or "")


def runs_of(name: JobName, sacct: str = "sacct", scontrol: str = "scontrol") -> tuple[list[ToldRun], list[str]]:
    """Return what Slurm tells of a job, the first run first, and what it does not tell.

    Raises SlurmError: neither accounting nor slurmctld knows it.
    """
    missing, found, now = [], [], []
    try:
        found = _accounted(sacct, ["-j", name.of_job])
    except SlurmError as error:
        missing.append(f"accounting: {error.message}")
    try:
        now = _current(name, scontrol)
    except SlurmError as error:
        if not found:
            raise SlurmError(
                f"Slurm knows no job {name.of_job}" if not missing else f"Slurm does not tell of job {name.of_job}",
                "; ".join([*missing, error.message]),
            ) from None
    return _joined(found, now), missing


def last_of(user: str, since: float, sacct: str = "sacct", *, good: str = "") -> list[ToldRun]:
    """Return a user's jobs that ran since then, or wait, without steps; the first first. Raises SlurmError.

    good    those of this name that ended well only
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    words = ["-X", "-u", user, f"--starttime={when}"]
    if good:  # with a state, accounting wants an end as well
        words += [f"--name={good}", "--state=COMPLETED", "--endtime=now"]
    return _accounted(sacct, words)


def _accounted(sacct: str, words: list[str]) -> list[ToldRun]:
    _, known, _ = ask([sacct, "--helpformat"], "what it can tell")
    there = {word.lower() for word in known.split()}
    fields = [field for field in _FIELDS if field.lower() in there]  # not all are in every release
    command = [
        sacct, "-n", "-P", "--duplicates", f"--delimiter={_SEPARATOR}", *words, f"--format={','.join(fields)}",
    ]  # fmt: skip
    well, out, said = ask(command, "of the job", "%s")
    if not well:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"{sacct} fails: {why[0][:200]}", "without accounting, Slurm knows a job for minutes only")
    return told(out, fields)


def told(text: str, fields: Iterable[str] = _FIELDS) -> list[ToldRun]:
    """Return the runs in what sacct prints, with their steps, the first first."""
    names = list(fields)
    found: list[tuple[dict[str, str], list[ToldStep]]] = []
    for line in text.splitlines():
        words = line.split(_SEPARATOR, len(names) - 1)
        if len(words) != len(names):
            continue  # a line of a name that has a line end in it
        row = {**dict.fromkeys(_FIELDS, ""), **dict(zip(names, words, strict=True))}
        raw, _, step = row["JobIDRaw"].partition(".")
        if not raw.isdecimal():
            continue
        if not step:
            found.append((row, []))
        elif found and found[-1][0]["JobIDRaw"] == raw:
            found[-1][1].append(_step(step, row))
    runs = [_run(row, steps) for row, steps in found]
    runs.sort(key=lambda one: (_place(one.shown), one.submit or 0.0, one.start or 0.0))
    return _counted(runs)


def _counted(runs: list[ToldRun]) -> list[ToldRun]:
    """Say of each run which of its job's it is: the last one's number is Slurm's, where it tells."""
    by_job: dict[str, list[ToldRun]] = {}
    for run in runs:
        by_job.setdefault(run.shown, []).append(run)
    done = []
    for several in by_job.values():
        first = max(several[-1].run - len(several) + 1, 0)
        done += [replace(one, run=first + at) for at, one in enumerate(several)]
    return done


def _step(name: str, row: Mapping[str, str]) -> ToldStep:
    state, _ = _state(row["State"])
    status, number = _exit(row["ExitCode"])
    return ToldStep(
        name, row["JobName"], state, status, number, _nodes(row["NodeList"]), when(row["Start"]), when(row["End"])
    )


def _run(row: Mapping[str, str], steps: list[ToldStep]) -> ToldRun:
    state, by = _state(row["State"])
    status, number = _exit(row["ExitCode"])
    limit, restarts, gpus = row["TimelimitRaw"], row.get("Restarts", ""), _GPUS.search(row["AllocTRES"])
    return ToldRun(
        row["JobID"], int(row["JobIDRaw"]), int(restarts) if restarts.isdecimal() else 0, row["JobName"],
        row["User"], int(row["UID"]) if row["UID"].isdecimal() else None, row["Account"], row["Partition"],
        row["Cluster"], state, by, status, number, _nodes(row["NodeList"]), int(gpus[1]) if gpus else None,
        when(row["Submit"]), when(row["Start"]), when(row["End"]), _minutes(limit),
        "" if row["Reason"] == "None" else row["Reason"], row.get("StdOut", ""), row["SubmitLine"], tuple(steps),
    )  # fmt: skip


def _current(name: JobName, scontrol: str) -> list[ToldRun]:
    command = [scontrol, "show", "job", name.of_job]
    well, out, said = ask(command, f"of job {name.of_job}", "%s")
    if not well:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"slurmctld: {why[0].removeprefix('slurm_load_jobs error: ')[:200]}")
    return [run for block in out.split("\n\n") if (run := shown(block)) is not None]


def shown(text: str) -> ToldRun | None:
    """Return the run in what `scontrol show job` prints of one, without steps."""
    said: dict[str, str] = {}
    for number, line in enumerate(text.strip().splitlines()):
        if number == 0:  # the job's name has what its owner likes
            head, _, title = line.partition(" JobName=")
            said |= dict(word.partition("=")[::2] for word in head.split())
            said["JobName"] = title
            continue
        line = line.strip()
        key, _, value = line.partition("=")
        if key in ("Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment", "SubmitLine"):
            said.setdefault(key, value)
            continue
        for word in line.split():
            key, equals, value = word.partition("=")
            if equals:
                said.setdefault(key, value)
    job = said.get("JobId", "")
    if not job.isdecimal() or "JobState" not in said:
        return None
    label = job
    if said.get("ArrayTaskId", "").isdecimal():
        label = f"{said['ArrayJobId']}_{said['ArrayTaskId']}"
    elif "HetJobOffset" in said:
        label = f"{said.get('HetJobId', job)}+{said['HetJobOffset']}"
    user, _, uid = said.get("UserId", "").rstrip(")").partition("(")
    status, number = _exit(said.get("ExitCode", ""))
    restarts, reason = said.get("Restarts", ""), said.get("Reason", "")
    over = said["JobState"] in OVER
    gpus = _GPUS.search(said.get("AllocTRES", said.get("TRES", "")))
    return ToldRun(
        label, int(job), int(restarts) if restarts.isdecimal() else 0, said.get("JobName", ""), user,
        int(uid) if uid.isdecimal() else None, _known(said.get("Account", "")), said.get("Partition", ""), "",
        said["JobState"], "", status, number, _nodes(said.get("NodeList", "")), int(gpus[1]) if gpus else None,
        when(said.get("SubmitTime", "")), when(said.get("StartTime", "")),
        when(said.get("EndTime", "")) if over else None, _limit(said.get("TimeLimit", "")),
        "" if reason == "None" else reason, said.get("StdOut", ""), _known(said.get("Command", "")),
    )  # fmt: skip


def _joined(past: list[ToldRun], now: list[ToldRun]) -> list[ToldRun]:
    """Return the accounted runs with what slurmctld knows better of the last run of each."""
    current = {run.number: run for run in now}
    last = {run.number: at for at, run in enumerate(past)}
    done = list(past)
    for number, at in last.items():
        if (other := current.pop(number, None)) is None:
            continue
        one = past[at]
        if one.uid != other.uid and one.submit != other.submit:
            done.append(other)  # another job: Slurm counts anew
            continue
        if one.is_over and not other.is_over:
            done.append(replace(other, account=one.account, cluster=one.cluster))  # requeued a moment ago
            continue
        done[at] = replace(
            one, output=one.output or other.output, state=one.state if one.is_over else other.state,
            reason=one.reason or other.reason if one.is_over else other.reason, limit_s=one.limit_s or other.limit_s,
            run=max(one.run, other.run), command=one.command or other.command,
            # slurmdbd has a job as root's, of no array, with its step's end, if it heard of that step first.
            user=other.user or one.user, uid=one.uid if other.uid is None else other.uid, shown=other.shown,
            status=other.status if other.is_over else one.status, signal=other.signal if other.is_over else one.signal,
        )  # fmt: skip
    return done + list(current.values())


def _state(text: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    return word.rstrip("+"), rest.removeprefix("by ") if rest.startswith("by ") else ""


def _exit(text: str) -> tuple[int, int]:
    status, _, number = text.partition(":")
    return int(status) if status.isdecimal() else 0, int(number) if number.isdecimal() else 0


def _nodes(text: str) -> tuple[str, ...]:
    if text in ("", "(null)", "None assigned", "None"):
        return ()
    try:
        return tuple(hostlist.expand(text))
    except PioletError:
        return ()


def when(text: str) -> float | None:
    """Return seconds since 1970 of a time that Slurm prints, None: it is not known."""
    if re.fullmatch(r"\d{9,11}", text):
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def _minutes(text: str) -> float | None:
    return int(text) * 60.0 if text.isdecimal() and int(text) < _UNLIMITED else None


def _limit(text: str) -> float | None:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    whole = (days * 24 + hours) * 60 + minutes
    return whole * 60.0 + seconds if whole < _UNLIMITED else None


def _known(text: str) -> str:
    return "" if text in ("(null)", "None") else text


def _place(label: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", label))
