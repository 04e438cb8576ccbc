"""Why a job ended as it did: the most likely reason first, each with what it rests on and what to do. Pure.

The order is by who can have caused it: what a node, the kernel or Slurm says of itself comes before what it may have
led to. An exit status of a program is the last that is believed, since most others make one, too.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Iterator, Sequence

from piolet.base import hostlist
from piolet.observe.job import Finding, Happened, Job, Reason, Step
from piolet.steps import identity

SURE = 0.9  # of a finding that is a reason by itself
_OWN_FAULT = (signals.SIGSEGV, signals.SIGBUS, signals.SIGFPE, signals.SIGILL, signals.SIGABRT)
_SHELL = 128  # a shell's status of a program that a signal ended is so much more than the signal
_MOST = 5
_FAULTS = ("gpu.xid", "gpu.lost", "nvswitch.sxid", "pcie.aer", "memory.ecc", "device.error", "fs.evicted")
# Errors that the driver reports and a program alone can cause (NVIDIA's catalogue of XIDs: 13, 31, 43, 68). Not 45,
# which is said of every program that is ended while it computes.
OF_PROGRAM = frozenset({13, 31, 43, 68})
_BAD_NODE = "ask for other nodes: --exclude={}; and tell the site"


def reasons(job: Job) -> tuple[Reason, ...]:
    """Return why, the most likely first; of what runs, waits or ended well, that it does."""
    run = job.now
    if run.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"):
        return (_waits(job), *_earlier(job))
    if run.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"):
        found = tuple(_found(job))
        return (Reason("runs", f"it runs on {_nodes(run.nodes)}"), *found, *_earlier(job))
    if run.state == "COMPLETED" and not any(step.status or step.signal for step in _failed(job)):
        return (Reason("ended_well", "it ended well"), *_found(job), *_earlier(job))
    made = [
        *_node_failed(job), *_hardware(job), *_memory(job), *_time(job), *_vetting(job), *_container(job),
        *_found(job), *_cancelled(job), *_signal(job), *_program(job), *_earlier(job),
    ]  # fmt: skip
    if not made:
        told = "; ".join(job.missing) or "no source says more than Slurm's state"
        made = [Reason("unknown", f"Slurm says {run.state}, and nobody says why", (told,), _LOOK)]
    return tuple(made)


_LOOK = "look at the end of its output (piolet job shows where that is)"


def _node_failed(job: Job) -> Iterator[Reason]:
    down = [one for one in job.events if one.kind == "slurm.node_state" and one.body.get("state") in ("down", "fail")]
    if job.now.state in ("NODE_FAIL", "BOOT_FAIL"):
        nodes = list(dict.fromkeys(one.node for one in down))
        which = _nodes(nodes) if nodes else "a node"
        evidence = [f"Slurm's state of the job is {job.now.state}", *map(_event, down[:_MOST])]
        advice = "submit it again (sbatch --requeue has Slurm do that)"
        excluded = hostlist.compress(nodes)
        advice += f", without {excluded}: --exclude={excluded}" if nodes else ""
        why = f": {down[0].text}" if len(nodes) == 1 and down[0].text else ""
        yield Reason("node_failure", f"{which} failed while it ran{why}", tuple(evidence), advice)


def _hardware(job: Job) -> Iterator[Reason]:
    """Faults of the hardware on nodes of the job: those that no program can make, and then the others."""
    hard: list[Happened] = []
    soft: list[Happened] = []
    for one in job.events:
        if one.source == "user" or one.kind not in _FAULTS:
            continue
        if one.kind == "gpu.xid" and one.body.get("xid") in OF_PROGRAM:
            soft.append(one)  # of no severity for the node, whose fault it is not
        elif one.severity in ("fatal", "warn") and not _is_corrected(one):
            hard.append(one)
    fatal = [one for one in hard if one.severity == "fatal"]
    if fatal:
        nodes = list(dict.fromkeys(one.node for one in fatal))
        sentence = f"{_nodes(nodes)} had a fault of the hardware while it ran: {_short(fatal[0])}"
        yield Reason(
            "gpu_error" if fatal[0].kind.startswith(("gpu", "nvswitch")) else "node_failure", sentence,
            tuple(map(_event, fatal[:_MOST])), _BAD_NODE.format(hostlist.compress(nodes)),
        )  # fmt: skip
    if soft and not fatal:
        yield Reason(
            "gpu_error", f"a GPU refused what the program did: {_short(soft[0])}", tuple(map(_event, soft[:_MOST])),
            "such an error comes of a program's mistake (an access beyond its memory), seldom of the GPU: run it with "
            "compute-sanitizer; if it comes on one node only, leave that one out",
        )  # fmt: skip


def _is_corrected(one: Happened) -> bool:
    return one.kind == "memory.ecc" and bool(one.body.get("corrected")) and not one.body.get("uncorrected")


def _memory(job: Job) -> Iterator[Reason]:
    killed = [
        one for one in job.events
        if (one.kind == "kernel.oom" and one.step) or (one.kind == "step.outcome" and one.body.get("why") == _OOM)
    ]  # fmt: skip
    steps = [step for step in _steps(job) if step.state == "OUT_OF_MEMORY"]
    if not killed and not steps and job.now.state != "OUT_OF_MEMORY":
        return
    nodes = list(dict.fromkeys(one.node for one in killed))
    where = f" on {_nodes(nodes)}" if nodes else ""
    evidence = [f"Slurm's state of step {step.name} is OUT_OF_MEMORY" for step in steps[:_MOST]]
    if job.now.state == "OUT_OF_MEMORY":
        evidence.insert(0, "Slurm's state of the job is OUT_OF_MEMORY")
    yield Reason(
        "out_of_memory", f"it needed more memory of the host than it had{where}, and the kernel ended a process of it",
        (*evidence, *map(_event, killed[:_MOST])), "ask for more: --mem=, or --mem-per-gpu=; or use less of it",
    )  # fmt: skip


_OOM = "out_of_memory"


def _time(job: Job) -> Iterator[Reason]:
    steps = [step for step in _steps(job) if step.state == "TIMEOUT"]
    if job.now.state not in ("TIMEOUT", "DEADLINE") and not steps:
        return
    whole = job.now.state in ("TIMEOUT", "DEADLINE")
    limit = f" of {span(job.limit)}" if job.limit and whole else ""
    what = "it" if whole else f"step {steps[0].name}"
    evidence = [f"Slurm's state is {job.now.state if whole else 'TIMEOUT'}"]
    if job.now.start and job.now.end:
        evidence.append(f"it ran for {span(job.now.end - job.now.start)}")
    yield Reason(
        "time_limit", f"{what} reached its time limit{limit}", tuple(evidence),
        "ask for more time (--time=), or save its state and go on in another job",
    )  # fmt: skip


def _vetting(job: Job) -> Iterator[Reason]:
    for one in job.vettings:
        if one.abort or (one.left_out and not one.chosen):
            why = one.abort or "no good nodes were left"
            evidence = [f"{node}: {text}" for node, texts in one.left_out.items() for text in texts][:_MOST]
            excluded = hostlist.compress(one.left_out)
            yield Reason(
                "vetting", f"the vetting '{one.protocol}' let no application start: {why}", tuple(evidence),
                _BAD_NODE.format(excluded) if excluded else "piolet vet why NODE says what was found",
            )  # fmt: skip


def _container(job: Job) -> Iterator[Reason]:
    refused = [one for one in job.events if one.kind == "step.refused"]
    if refused:
        sentence = f"the container of step {refused[0].step or '?'} could not be started: {refused[0].text}"
        advice = "piolet env check FILE says what is wrong with a definition"
        yield Reason("container", sentence, tuple(map(_event, refused[:_MOST])), advice)


def _found(job: Job) -> Iterator[Reason]:
    sure = [one for one in job.findings if one.confidence is not None and one.confidence >= SURE]
    for one in sorted(sure, key=lambda one: -(one.confidence or 0.0))[:_MOST]:
        yield Reason("finding", one.text, (_finding(one),), one.advice)


def _cancelled(job: Job) -> Iterator[Reason]:
    if job.now.state in ("CANCELLED", "PREEMPTED", "REVOKED"):
        by = job.now.by
        who = {"": "", str(job.uid): f" by {job.user or 'its owner'}", "0": " by root"}.get(by, f" by account {by}")
        if job.now.state == "PREEMPTED":
            yield Reason("cancelled", "a job of higher priority took its nodes", ("Slurm's state is PREEMPTED",),
                         "submit it again, or in a partition that is not preempted")  # fmt: skip
        elif not job.now.start:
            yield Reason("cancelled", f"it was cancelled{who} before it began", ("Slurm's state is CANCELLED",))
        else:
            yield Reason("cancelled", f"it was cancelled{who}", ("Slurm's state is CANCELLED",))


def _signal(job: Job) -> Iterator[Reason]:
    for step in _failed(job):
        number = step.signal or (step.status - _SHELL if _SHELL < step.status <= _SHELL + 64 else 0)
        if not number or (step.state in ("OUT_OF_MEMORY", "TIMEOUT", "CANCELLED") and number not in _OWN_FAULT):
            continue
        name = _named(number)
        evidence = (f"step {step.name} ended by signal {number}", *_outcomes(job, step))
        if number in _OWN_FAULT:
            yield Reason("signal", f"the program of step {step.name} crashed ({name})", evidence,
                         "its mistake: look at its core dump or its last output")  # fmt: skip
        else:
            yield Reason("signal", f"step {step.name} was ended by a signal ({name})", evidence,
                         "somebody or something sent it: scancel, a limit, or the program itself")  # fmt: skip


def _program(job: Job) -> Iterator[Reason]:
    failed = [one for one in _failed(job) if not one.signal and 0 < one.status <= _SHELL]
    if not failed:
        if not _failed(job) and job.now.status and job.now.state == "FAILED":
            sentence = f"the batch script ended with status {job.now.status}"
            yield Reason("program", sentence, (f"Slurm's state is {job.now.state}",), _LOOK)
        return
    step = failed[0]
    meaning = {126: ": the program may not be run", 127: ": there is no such program"}.get(step.status, "")
    what = "the batch script" if step.name == "batch" else f"the program of step {step.name}"
    sentence = f"{what} ended with status {step.status}{meaning}"
    yield Reason("program", sentence, (f"{step.name}: {step.state} {step.status}", *_outcomes(job, step)), _LOOK)


def _earlier(job: Job) -> Iterator[Reason]:
    if job.earlier:
        last = job.earlier[-1]
        many = "once" if len(job.earlier) == 1 else f"{len(job.earlier)} times"
        evidence = tuple(f"run {one.run}: {one.state} on {_nodes(one.nodes)}" for one in job.earlier[-_MOST:])
        yield Reason("requeued", f"it was requeued {many}; the run before ended as {last.state}", evidence)


def _waits(job: Job) -> Reason:
    known = {
        "Resources": "for nodes that others have now", "Priority": "for jobs of higher priority",
        "Dependency": "for jobs that it depends on", "BeginTime": "for its time to begin",
        "QOSMaxJobsPerUserLimit": "for other jobs of yours to end",
        "PartitionNodeLimit": "and cannot start as it is: it asks for more nodes than its partition gives",
        "PartitionTimeLimit": "and cannot start as it is: it asks for more time than its partition gives",
        "DependencyNeverSatisfied": "and cannot start: a job that it depends on did not end well",
    }  # fmt: skip
    why = job.waits_for
    evidence = (f"Slurm's reason is {why}",) if why else ()
    advice = "scontrol release lets it go on" if "Held" in why else ""
    if "Held" in why:
        return Reason("waits", "it is held", evidence, advice)
    return Reason("waits", f"it waits {known.get(why, 'to be started')}", evidence, advice)


def _steps(job: Job) -> Sequence[Step]:
    return [one for one in job.now.steps if not job.step or one.name == job.step]


def _failed(job: Job) -> list[Step]:
    """Return steps that ended badly, applications before the batch script, which has its status of one of them."""
    bad = [one for one in _steps(job) if (one.status or one.signal) and one.name != "extern"]
    return sorted(bad, key=lambda one: (one.name == "batch", one.end or 0.0))


def _outcomes(job: Job, step: Step) -> list[str]:
    outcomes = [one for one in job.events if one.kind == "step.outcome" and identity.is_of(one.step, step.name)]
    own = [one for one in outcomes if one.step == step.name or one.node in step.nodes]
    bad = [one for one in own if one.body.get("status") or one.body.get("signal")]
    return [_event(one) for one in sorted(bad, key=lambda one: (one.body.get("order", 0), one.time))[:_MOST]]


def _named(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _event(one: Happened) -> str:
    return f"{one.node}: {one.kind}: {one.text}" if one.text else f"{one.node}: {one.kind}"


def _short(one: Happened) -> str:
    if one.kind == "gpu.xid":
        return f"XID {one.body.get('xid', '?')}"
    return one.text or one.kind


def _finding(one: Finding) -> str:
    where = f" on {one.node}" if one.node else ""
    return f"detector {one.detector}{where}: confidence {100 * (one.confidence or 0.0):.3g} %"


def _nodes(nodes: Sequence[str]) -> str:
    return hostlist.compress(nodes) if nodes else "no node"


def span(seconds: float | None) -> str:
    """Return a span as people say it: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
