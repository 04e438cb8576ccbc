"""`piolet central status | node | offenders | explain | note | ack`: asks the service, and prints its answer."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from piolet.base import units
from piolet.base.errors import UsageError
from piolet.base.texts import columns, counted
from piolet.cli.main import printable
from piolet.site import config

ACTIONS = ("status", "node", "offenders", "explain", "note", "ack", "repaired", "revetted")
_SAYS = ("note", "ack", "repaired", "revetted")
_RECORDS_SHOWN = 20


def add_parsers(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions."""
    status = _parser(actions, "status", "how the service is, and how much it has")
    node = _parser(actions, "node", "what is known of a node")
    node.add_argument("node", metavar="NAME", help="Slurm's name of the node")
    node.add_argument("--since", metavar="TIME", default="7d", help="how far back: 7d, 12h (7d)")
    offenders = _parser(actions, "offenders", "nodes with open cases, those with most first")
    explain = _parser(actions, "explain", "why a case is one: the rule, the records, and what would be done")
    explain.add_argument("case", metavar="CASE", help="the number of a case")
    note = _parser(actions, "note", "write down something about a node or a case (staff)")
    note.add_argument("about", metavar="NODE|CASE", help="a node's name, or a case's number")
    note.add_argument("text", metavar="TEXT", help="one line")
    acknowledge = _parser(actions, "ack", "say that a case was seen (staff)")
    acknowledge.add_argument("case", metavar="CASE", help="the number of a case")
    acknowledge.add_argument("text", metavar="TEXT", nargs="?", default="seen", help="one line")
    repaired = _parser(actions, "repaired", "say that a node was repaired, which rules see (staff)")
    repaired.add_argument("node", metavar="NODE", help="the node's name")
    repaired.add_argument("text", metavar="TEXT", help="what was done, one line")
    repaired.add_argument("--ticket", metavar="NUMBER", default="", help="where it is written down")
    revetted = _parser(actions, "revetted", "say how a re-vet came out, which rules see (staff)")
    revetted.add_argument("node", metavar="NODE", help="the node's name")
    revetted.add_argument("outcome", choices=("good", "bad"), help="how it came out")
    revetted.add_argument("text", metavar="TEXT", nargs="?", default="", help="why, one line")
    revetted.add_argument("--case", metavar="CASE", default="", help="the case that asked for it")
    for parser in (status, node, offenders, explain):
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _parser(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Ask, and print the answer."""
    from piolet.cli import centralpeer  # who only looks at rules asks nobody
    from piolet.transport import statements
    from piolet.transport.asking import Asker

    asker = Asker(centralpeer.of_user(settings))
    if args.action in _SAYS:
        _write(args, asker)
        return 0
    query: dict[str, str] = {}
    if args.action == "node":
        back = units.seconds_of(args.since)
        if not back or back <= 0:
            raise UsageError(f"--since is {args.since!r}", "a time like 7d or 12h")
        query = {"name": args.node, "seconds": f"{back:.0f}"}
    elif args.action == "explain":
        query = {"id": args.case}
    name = {"explain": "case"}.get(args.action, args.action)
    said = asker.ask("GET", statements.question(f"/v1/{name}", query)).said
    if args.json:
        print(json.dumps(said))
        return 0
    lines = {"status": _status, "node": _node, "offenders": _offenders, "explain": _explain}[args.action](said)
    print(printable("\n".join(lines)))
    return 0


def _write(args: argparse.Namespace, asker: Any) -> None:
    said = {"text": args.text}
    if args.action == "ack":
        said["case"] = args.case
    elif args.action == "repaired":
        said |= {"node": args.node, "ticket": args.ticket}
    elif args.action == "revetted":
        said = {"node": args.node, "outcome": args.outcome, "reason": args.text, "request": args.case}
    else:
        said["case" if _is_case(args.about) else "node"] = args.about
    asker.ask("POST", f"/v1/{args.action}", json.dumps(said).encode(), kind="application/json")
    print("written down")


def _is_case(text: str) -> bool:
    return len(text) == 16 and not set(text) - set("0123456789abcdef")


def _status(said: dict[str, Any]) -> list[str]:
    judging = "rules have judged all of it" if said["caught_up"] else "rules judge what has come before"
    batches = "1 batch" if said["batches"] == 1 else f"{said['batches']} batches"
    lines = [
        f"{counted(said['records'], 'record')} of {counted(said['nodes'], 'node')}, in {batches}",
        _missing(said),
        f"{counted(said['cases'], 'open case')}; "
        + (judging if said["judging"] else "rules are not judged any more: the service's log says why"),
    ]
    if said.get("failing"):
        lines.insert(0, f"nothing is kept now: {said['failing']}; nodes wait with what they have")
    if said["silent"]:
        names = said.get("silent_nodes", [])
        more = f": {', '.join(names[:10])}" + (", …" if len(names) > 10 else "") if names else ""
        lines.append(f"{counted(said['silent'], 'node')} said nothing for a quarter of an hour{more}")
    if said.get("retired"):
        many = f"{counted(said['retired'], 'node')} {'is' if said['retired'] == 1 else 'are'}"
        lines.append(f"{many} retired: not in Slurm any more, or acknowledged as silent")
    return lines


def _missing(said: dict[str, Any]) -> str:
    told = {"never came, or were refused": said["gone"], "were lost on nodes before they were delivered": said["lost"],
            "were above users' shares and not written": said["dropped"]}  # fmt: skip
    words = [f"{counted(number, 'record')} {what}" for what, number in told.items() if number]
    return "; ".join(words) or "no record is missing"


def _node(said: dict[str, Any]) -> list[str]:
    last = said["last"]
    lines = [f"{said['node']}: " + (f"last heard of {_ago(last)}" if last else "it never said anything itself")]
    closed = {one["case"] for one in said["cases"] if one["state"] == "closed"}
    opened = [one for one in said["cases"] if one["state"] == "open"]
    for one in opened:
        state = "closed" if one["case"] in closed else "open"
        lines.append(f"  case {one['case']}, {state}: {one['sentence']}")
    rows = [
        (kind, str(count["records"]), f"of {counted(count['users'], 'user')}" if count["users"] else "")
        for kind, count in sorted(said["counts"].items())
    ]
    lines += [f"  {line}".rstrip() for line in columns(rows, right=(1,))]
    if not said["complete"]:
        lines.append("  (of the latest records: there are more in this time)")
    for gap in said.get("gaps", []):
        lines.append(f"  records {gap['first']} to {gap['last']} of {gap['epoch']} are not here: {gap['why']}")
    for note in said.get("notes", []):
        lines.append(f"  {_ago(note['time'])}, uid {note['uid']}: {note['text']}")
    shown = [one for one in said["records"] if one["kind"] != "node.heartbeat"][:_RECORDS_SHOWN]
    last_ones = [
        (_ago(one["time"]), one["kind"], one.get("subject", ""), json.dumps(one.get("body", {}))[:100])
        for one in shown
    ]  # fmt: skip
    return lines + [f"  {line}".rstrip() for line in columns(last_ones)]


def _offenders(said: dict[str, Any]) -> list[str]:
    if not said["nodes"]:
        return ["no node has an open case"]
    lines = []
    for node in said["nodes"]:
        lines += [f"{one['case']}  {one['sentence']}" for one in node["cases"]]
    return lines


def _explain(said: dict[str, Any]) -> list[str]:
    notes = [f"  {_ago(one['time'])}, uid {one['uid']}: {one['text']}" for one in said.get("notes", [])]
    return [*said["lines"], *notes]


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"
