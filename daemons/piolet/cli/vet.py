"""`piolet vet`: check protocols, list evals, vet this node, and tell why a node was left out.

Standard output has the result only. `run` ends with status 0 when this node is good, 3 when it is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from piolet.base import texts
from piolet.base.errors import UsageError, VetError
from piolet.cli.main import printable
from piolet.site import config
from piolet.vet.runner.plan import Plan

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `vet` and its actions."""
    parser = subparsers.add_parser(
        "vet", help="check nodes against a protocol", description="Check nodes against a protocol.", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", help="say whether a protocol is valid", description="Say whether a protocol is valid."
    )
    check.add_argument("file", metavar="FILE", help="a protocol")
    listing = actions.add_parser("list", help="list the evals", description="List the evals, or explain one.")
    listing.add_argument("eval", metavar="EVAL", nargs="?", help="one of them, with its parameters")
    run = actions.add_parser("run", help="vet this node", description="Vet this node, in the foreground.")
    run.add_argument("file", metavar="PROTOCOL", help="a protocol")
    run.add_argument("--report", metavar="PATH", help="where the result goes; without it, in a job, among yours")
    run.add_argument("--no-cache", action="store_true", help="judge everything anew")
    run.add_argument("--quiet", action="store_true", help="print only what is bad")
    why = actions.add_parser(
        "why", help="tell what was found of a node", description="Tell what was found of a node, from a result file."
    )
    why.add_argument("node", metavar="NODE", help="the node")
    why.add_argument("--report", metavar="PATH", help="the result file; without it the newest of your results")
    gate = actions.add_parser(
        "gate", help="what the plugin in srun calls", description="Vet a job's nodes and say how srun goes on."
    )
    gate.add_argument("--stage", choices=("submit", "step", "allocated"), required=True, help="when srun asks")
    gate.add_argument("--job", metavar="N", type=int, required=True, help="the job, 0 before there is one")
    gate.add_argument("--result-fd", metavar="N", type=int, required=True, help="where the words of the command go")
    # One list: what stands after --vet= may be any word, which argparse takes as it is only behind a '--'.
    gate.add_argument(
        "words", metavar="WORD", nargs="+", help="after '--': what stands after --vet=, the words of srun"
    )


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Do what `args` say and return the exit status."""
    if args.action == "check":
        return _check(args, settings)
    if args.action == "list":
        return _list(args, settings)
    if args.action == "why":
        return _why(args, settings)
    if args.action == "gate":
        return _gate(args, settings)
    return _run(args, settings)


def search_path(environ: dict[str, str] | os._Environ[str]) -> tuple[str, ...]:
    """Return where a user's own classes are looked for: the working directory, that of sbatch, and PYTHONPATH."""
    paths = [
        _working_directory(),
        environ.get("SLURM_PIOLET_VET_FROM", ""),
        *environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    return tuple(dict.fromkeys(os.path.abspath(path) for path in paths if path))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # a protocol elsewhere is none the worse for it
        return ""


def _load(path: str, settings: config.Config) -> Plan:
    from piolet.vet import protocol
    from piolet.vet.catalogue import catalogue

    plan = protocol.load(path, catalogue(settings.vet.evals), search_path(os.environ))
    return dataclasses.replace(plan, requirements_s=settings.vet.requirements_timeout_s)


def _check(args: argparse.Namespace, settings: config.Config) -> int:
    from piolet.vet.catalogue import exists

    plan = _load(args.file, settings)
    own = [task.kind for task in plan.tasks if task.search and not exists(task.kind, task.search)]
    note = f", of them not known here: {', '.join(own)}" if own else ""
    print(f"{args.file} is valid: {texts.counted(len(plan.tasks), 'eval')}{note}")
    return 0


def _list(args: argparse.Namespace, settings: config.Config) -> int:
    from piolet.base.nearest import nearest
    from piolet.vet import listing
    from piolet.vet.catalogue import catalogue

    known = catalogue(settings.vet.evals)
    if args.eval is None:
        print("\n".join(listing.overview(known)))
        return 0
    entry = known.find(args.eval)
    if entry is None:
        near = nearest(args.eval, known.entries)
        hint = f"did you mean '{near}'?" if near else "`piolet vet list` shows them all"
        raise UsageError(f"there is no eval '{args.eval}'", hint)
    print("\n".join(listing.explain(entry)))
    return 0


def _run(args: argparse.Namespace, settings: config.Config) -> int:
    from piolet.vet import foreground, problems, results, screen, verdicts

    plan = _load(args.file, settings)
    node = socket.gethostname().partition(".")[0]
    started, begun = time.time(), time.monotonic()
    decision = foreground.vet(plan, node, use_cache=not args.no_cache)
    seconds = time.monotonic() - begun
    job = os.environ.get("SLURM_JOB_ID", "")
    path = args.report or (_report(settings)(int(job)) if job.isdecimal() else None)
    if path:
        chosen = decision.good if not decision.abort else []
        results.write(path, results.document(plan, decision, job, started, seconds, chosen))
    good = bool(decision.good) and not decision.abort
    text = screen.render(plan, decision, seconds)
    if args.quiet:
        text = "" if good else "\n".join(problems.lines(plan, decision)) + "\n"
    sys.stdout.write(printable(text))
    return 0 if good else verdicts.STATUS_BAD


def _report(settings: config.Config) -> Callable[[int], str]:
    """Return what says where the result of a job's vetting goes."""
    from piolet.observe import results
    from piolet.system.accounts import own_name

    place = results.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
    return "vet-{}.json".format if place is None else functools.partial(results.vet_file, place)


def _why(args: argparse.Namespace, settings: config.Config) -> int:
    from piolet.observe import results as kept
    from piolet.system.accounts import own_name
    from piolet.vet import results, screen

    path = args.report
    if path is None:
        place = kept.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
        names = [*glob.glob("vet-*.json"), *map(str, kept.every(place, kept.VET))]
        found = [name for name in names if os.path.isfile(name)]
        if not found:
            where = f"in this directory, nor below {place}" if place else "in this directory"
            raise VetError(f"there is no vet-*.json {where}", "name the result file with --report=PATH")
        path = max(found, key=os.path.getmtime)
    value = results.read(path)
    state = value["nodes"].get(args.node)
    if not isinstance(state, dict):
        known = ", ".join(sorted(value["nodes"])[:10])
        raise VetError(f"the node '{args.node}' is not in {path}", f"nodes there: {known}")
    print(printable(f"{args.node} is {state.get('state')} ({path})"))
    for line in screen.why(value["records"], args.node):
        print(printable(line))
    return 0


def _gate(args: argparse.Namespace, settings: config.Config) -> int:
    for number in _ENDS:
        signal.signal(number, _interrupt)
    from piolet.slurm import srunwords
    from piolet.vet import gate, request, shortcut

    def say(text: str) -> None:
        sys.stderr.write(printable(text))
        sys.stderr.flush()

    if args.stage == "submit":
        from piolet.cli import batch

        called = batch.script()
        batch.check_parts(called, batch.VET)
    site = gate.Site(settings.node.vet_program, settings.node.vet_socket, _report(settings))
    started = _parent_environment()
    asked, *words = args.words
    own = args.stage == "allocated" and not srunwords.attaches(words) and not _in_a_job(started)
    order = gate.GateCall(args.stage, args.job, asked, tuple(words), own, started or {})
    protocol_file = request.parse(asked).path
    watched = shortcut.watch(
        os.environ, asked, protocol_file, args.config or "", str(config.DEFAULT_PATH), settings.vet.evals
    )
    load = functools.partial(_load, settings=settings)
    found = gate.answer(order, site, load, os.environ, say, watched if args.stage == "step" else None)
    if args.stage == "submit":
        from piolet.submission import record

        with open(args.result_fd, "wb", closefd=False) as file:
            file.write(record.Script.BARE.value + b"\0" if batch.is_bare(called, batch.VET) else b"")
        return found.status
    from piolet.observe import results
    from piolet.system.accounts import own_name

    place = results.place_of(os.environ, settings.results.directory, own_name(), settings.events.cluster)
    if place is not None:
        removed = results.make_room(place, settings.results.most, settings.results.most_mb)
        say(f"piolet: {removed}\n" if removed else "")
    if found.words:
        with open(args.result_fd, "wb", closefd=False) as file:
            file.write(b"".join(os.fsencode(word) + b"\0" for word in found.words))
    return found.status


def _interrupt(number: int, frame: object) -> None:
    """Have what was begun ended; the plugin repeats its signal, which must not end that."""
    for other in _ENDS:
        signal.signal(other, signal.SIG_IGN)
    sys.unraisablehook = _unraisable
    raise KeyboardInterrupt


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Say nothing of a signal that came together with the first: Python complains that it is ignored by now."""
    if not isinstance(what.exc_value, OSError):
        sys.__unraisablehook__(what)


def _in_a_job(environ: dict[str, str] | None) -> bool:
    """Return whether srun was started in a job: then it joined that one and made none. Unknown counts as yes."""
    return environ is None or "SLURM_JOB_ID" in environ or "SLURM_JOBID" in environ


def _parent_environment() -> dict[str, str] | None:
    """Return the environment that srun was started with, or None: it cannot be told."""
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            pairs = (os.fsdecode(word).partition("=") for word in file.read().split(b"\0") if word)
            return {name: value for name, _, value in pairs}
    except OSError:
        return None
