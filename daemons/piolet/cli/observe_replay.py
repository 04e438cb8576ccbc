"""`piolet observe replay DETECTOR`: what a detector says of every step whose data are kept."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from piolet.base import texts
from piolet.cli.observe_findings import own_detectors
from piolet.observe import bounded, finding, replaying
from piolet.observe.finding import FAILED, FOUND, UNKNOWN
from piolet.site import config


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay`."""
    text = "run a detector over all steps that are kept, or over a data set that says what is expected"
    parser = actions.add_parser("replay", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("detector", metavar="DETECTOR", help="its name, or the path of a file NAME.py of yours")
    parser.add_argument(
        "--dir", metavar="DIR", help="the steps: a directory of DATE/JOB.STEP; otherwise [keep] directory"
    )
    parser.add_argument("--detectors", metavar="DIR", help="the site's own, instead of [keep] detectors")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each step")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print a line for each step where something was found. Exit status 1: it failed, or not what was expected."""
    where = own_detectors(args, settings)
    finding.load(args.detector, where)  # an error of the name or the file is told once
    root = replaying.root_of(Path(args.dir or settings.keep.directory))
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong = steps = 0
    requests = (bounded.Request(path, args.detector) for path in replaying.steps_below(root))
    for request, said in bounded.judge(requests, where):
        steps += 1
        counts[said.state] += 1
        name = "/".join(request.directory.parts[-2:])
        expected = replaying.expected(request.directory, said.detector)
        if said.state in (UNKNOWN, FAILED):
            reasons[f"{said.state}: {said.reason}"] += 1
        if args.json:
            texts_of = [one.text for one in said.findings]
            print(json.dumps({"step": name, "state": said.state, "reason": said.reason, "found": texts_of,
                              "effects": [one.effect for one in said.findings], "expected": expected}))  # fmt: skip
        for one in said.findings if not args.json else ():
            print(f"{name}  {one.text}")
        if expected and expected != said.state:
            wrong += 1
            print(f"{name}  expected: {expected}, and it says: {said.state}")
    if not args.json:
        found = f"found something in {counts[FOUND]}, nothing in {counts[finding.NOTHING]}"
        print(f"{args.detector} looked at {texts.counted(steps, 'step')}: {found}, cannot tell of {counts[UNKNOWN]}")
        for reason, many in reasons.most_common(10):
            print(f"    {many} {reason}")
    return int(bool(wrong or counts[FAILED]))
