"""`piolet central rules`, `replay` and `spares`: look at rules, and try them on what has been.

None needs the service: rules are files, and a history is the service's store, or what Slurm's accounting has. Where
there is one, it is asked for spares, as users may not read its store.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from piolet.base import units
from piolet.base.errors import EventError, SlurmError, UsageError
from piolet.base.files import NotRegularError, open_regular, read_small
from piolet.base.texts import counted
from piolet.central.settings import CentralConfig
from piolet.cli.main import printable
from piolet.events.envelope import Event
from piolet.site import config
from piolet.slurm import cluster as slurm

_LINES_MAX = 1 << 30
_OURS, _BACK = "those of [central] rules", "90d"
_Row = TypeVar("_Row")


def add_parsers(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `rules`, `replay` and `spares`."""
    rules = actions.add_parser("rules", help="list and check rules", description="Rules of the central service.")
    asked = rules.add_subparsers(dest="rules", metavar="ACTION", required=True)
    for name, text in (
        ("list", "list rules, and what each stands on"),
        ("check", "say whether a file of rules is right"),
    ):
        one = asked.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
        what = f"a file of rules; without one: {_OURS}"
        one.add_argument("file", metavar="FILE", nargs="?" if name == "list" else None, help=what)
    text = "say what rules would have concluded of what has been"
    replay = actions.add_parser("replay", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    replay.add_argument("file", metavar="RULES", nargs="?", help=f"a file of rules; without one: {_OURS}")
    _add_history(replay)
    replay.add_argument("--conclusions", action="store_true", help="print each conclusion as a line of JSON")
    replay.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    text = "say how many spare nodes a job needs, by how often nodes have failed here"
    spares = actions.add_parser("spares", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    spares.add_argument("nodes", metavar="NODES", type=int, help="how many nodes the job has")
    spares.add_argument("hours", metavar="HOURS", type=float, help="for how long it runs")
    _add_history(spares)


def _add_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="TIME", help=f"how far back: 90d, 12h ({_BACK})")
    parser.add_argument("--events", metavar="FILE", help="a history as lines of events, one a line")
    parser.add_argument("--sacct", metavar="FILE", help="a history of jobs: what 'sacct -aPXD -S …' printed")
    parser.add_argument("--sacctmgr", metavar="FILE", help="a history of nodes: what 'sacctmgr -P show event' printed")
    parser.add_argument("--slurm", action="store_true", help="ask Slurm's accounting for both")


def run_rules(args: argparse.Namespace, settings: config.Config) -> int:
    """Print rules, or that they are right."""
    from piolet.central import rulefiles  # CEL is loaded for these verbs alone
    from piolet.central.rules.explain import rules_list

    rules = rulefiles.read(args.file or settings.central.rules)
    if args.rules == "check":
        print(f"{args.file}: {counted(len(rules), 'rule')}, all right")
    else:
        print("\n".join(rules_list(rules)) if rules else "no rules")
    return 0


def run_replay(args: argparse.Namespace, settings: config.Config) -> int:
    """Replay, and print what came of it."""
    from piolet.central import rulefiles
    from piolet.central.conclusions import encode
    from piolet.central.rules.explain import when
    from piolet.central.rules.replay import replay, table

    rules = rulefiles.read(args.file or settings.central.rules)
    history, since, over = _history(args, settings)
    done = replay(rules, history, since, over=over)
    if args.conclusions:
        sys.stdout.writelines(encode(one).decode() for one in done.conclusions)
        return 0
    if args.json:
        print(json.dumps({
            "events": done.events, "nodes": done.nodes, "failures": done.failures, "begin": done.begin, "end": done.end,
            "refused": done.refused, "troubles": done.troubles,
            "rules": [{**vars(one), "nodes": sorted(one.nodes)} for one in done.outcomes.values()],
        }))  # fmt: skip
        return 0
    if not done.events:
        print("there is no history: no record was found")
        return 0
    print(f"{counted(done.events, 'record')} of {counted(done.nodes, 'node')}, {when(done.begin)} to {when(done.end)}; "
          f"{counted(done.failures, 'failure')} of nodes since {when(max(done.begin, since))}")  # fmt: skip
    print("\n".join(table(done)))
    if done.refused:
        print(f"{counted(done.refused, 're-vet')} more would have been asked for, above what is allowed in a day")
    for name, many in done.troubles.items():
        print(f"rule '{name}' could not be computed {counted(many, 'time')}: a value is of another type, or missing")
    return 0


def run_spares(args: argparse.Namespace, settings: config.Config) -> int:
    """Print advice on spares: of the history that is named, or as the central service has it, which whoever may ask."""
    if not 0 < args.nodes < 10**6 or not 0 < args.hours < 1e6:
        raise UsageError("a job has from one node to 999,999, and takes more than no time")
    if settings.central.url and args.since is None and not (args.events or args.sacct or args.sacctmgr or args.slurm):
        print(_asked_spares(args, settings))
        return 0
    from piolet.central.rules.replay import replay
    from piolet.central.rules.users import spares_line

    history, since, over = _history(args, settings)
    done = replay((), history, since, over=over)
    hours = done.nodes * max(0.0, done.end - max(done.begin, since)) / 3600
    line = spares_line(args.nodes, args.hours, done.failures, hours)
    print(line or f"too little is known: {counted(done.nodes, 'node')} heard of, for {hours:,.0f} node-hours")
    return 0


def _asked_spares(args: argparse.Namespace, settings: config.Config) -> str:
    from piolet.cli import centralpeer
    from piolet.transport import statements
    from piolet.transport.asking import Asker

    target = statements.question("/v1/spares", {"nodes": str(args.nodes), "hours": repr(args.hours)})
    said = Asker(centralpeer.of_user(settings)).ask("GET", target).said
    return printable(said["line"] or f"too little is known: {said['node_hours']:,.0f} node-hours of 90 days")


def _history(args: argparse.Namespace, settings: config.Config) -> tuple[Iterator[tuple[Event, float]], float, bool]:
    """Return records with when they were taken, since when is asked for, and whether that history is over."""
    back = units.seconds_of(_BACK if args.since is None else args.since)
    if not back or back <= 0:
        raise UsageError(f"--since is {args.since!r}", "a time like 90d or 12h")
    if sum(map(bool, (args.events, args.sacct or args.sacctmgr, args.slurm))) > 1:
        raise UsageError("there is one history: --events, --sacct with --sacctmgr, or --slurm")
    if args.events or args.sacct or args.sacctmgr or args.slurm:
        taken = list(_lines(args.events) if args.events else _accounted(args, back))
        return iter(taken), max((received for _, received in taken), default=0.0) - back, True
    return _stored(settings.central), time.time() - back, False


def _stored(central: CentralConfig) -> Iterator[tuple[Event, float]]:
    """Yield the records of the service's store, each with when it was taken."""
    from piolet.central.store.archive import Archive
    from piolet.central.store.database import connect
    from piolet.central.store.reader import Reader

    archive = Archive(central.archive) if central.keep_months else None
    reader = Reader(connect(central.store), central.cluster or slurm.cluster().name, archive)
    return ((stored.event, stored.received) for stored in reader.arrivals())


def _lines(path: str) -> Iterator[tuple[Event, float]]:
    """Yield the events of a file of lines, each taken when it happened."""
    from piolet.events.envelope import LINE_MAX, decode

    try:
        with open(open_regular(path), "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_MAX + 1), b""), 1):
                if not line.strip():
                    continue
                try:
                    event = decode(line)
                except EventError as error:
                    raise EventError(f"{path}:{number}: {error.message}") from None
                yield event, event.time - (event.offset or 0.0)
    except (OSError, NotRegularError) as error:
        raise EventError(_unreadable(path, error)) from None


def _accounted(args: argparse.Namespace, back: float) -> Iterator[tuple[Event, float]]:
    from piolet.central.accounted import events_of_jobs, events_of_states
    from piolet.slurm import past

    cluster = "slurm"
    if args.slurm:
        now = time.time()
        jobs, states = past.ask_jobs(now - back, now), past.ask_states(now - back)
    else:
        jobs = _read(args.sacct, past.jobs) if args.sacct else []
        states = _read(args.sacctmgr, past.states) if args.sacctmgr else []
    events = [*events_of_jobs(jobs, cluster), *events_of_states(states, cluster)]
    events.sort(key=lambda event: (event.time, event.node, event.seq))
    return ((event, event.time) for event in events)


def _read(path: str, parse: Callable[[str], list[_Row]]) -> list[_Row]:
    try:
        return parse(_text(path))
    except SlurmError as error:
        raise EventError(f"{path}: {error.message}", error.hint) from None


def _unreadable(path: str, error: OSError | NotRegularError) -> str:
    return f"cannot read {path}: {getattr(error, 'strerror', 'it is not a regular file')}"


def _text(path: str) -> str:
    try:
        data, _ = read_small(path, _LINES_MAX)
    except (OSError, NotRegularError) as error:
        raise EventError(_unreadable(path, error)) from None
    if len(data) > _LINES_MAX:
        raise EventError(f"{path} is longer than the limit of {_LINES_MAX} bytes", "export a shorter time")
    if data and not data.endswith(b"\n"):
        raise EventError(f"{path} is cut off: its last line does not end", "export it again")
    return data.decode("utf-8", "replace")


ACTIONS = {"rules": run_rules, "replay": run_replay, "spares": run_spares}
