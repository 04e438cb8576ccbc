"""`piolet observe findings STEP`: what detectors found in a step, and what they cannot tell."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from piolet.base import texts
from piolet.base.errors import ObserveError
from piolet.cli import stepsasked
from piolet.observe import bounded, finding, layout, replaying
from piolet.observe.finding import FAILED, FOUND, NOTHING, UNKNOWN, Judged
from piolet.site import config


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `findings`."""
    text = "say what detectors find in the data of a step, with the evidence, and what they cannot tell"
    parser = actions.add_parser("findings", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument(
        "step",
        metavar="STEP",
        nargs="?",
        help="a directory with data of a step, one of --score, or JOB[.STEP] of the central service",
    )
    parser.add_argument("--dir", metavar="DIR", help="look for JOB.STEP there: a directory of DATE/JOB.STEP")
    parser.add_argument("--list", action="store_true", help="list the detectors, with their effects and rates of error")
    parser.add_argument("--detectors", metavar="DIR", help="the site's own, instead of [keep] detectors")
    parser.add_argument("--json", action="store_true", help="print one object of JSON")


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Print them. Exit status 1: a detector failed."""
    where = own_detectors(args, settings)
    if args.list:
        return _list(args, where)
    if not args.step:
        raise ObserveError("no step is named", "piolet observe findings DIRECTORY, or JOB.STEP; --list lists detectors")
    if args.dir or _is_path(args.step) or not settings.central.url or os.access(settings.keep.directory, os.R_OK):
        directory = replaying.step_directory(args.step, Path(args.dir or settings.keep.directory))
        said, name = bounded.find(directory, where), directory.name
    else:  # as a user, who asks the service for what is theirs
        asked = stepsasked.service(settings)
        step = stepsasked.named(asked, args.step)
        with tempfile.TemporaryDirectory(prefix="piolet-findings-") as room:
            said, name = bounded.find(stepsasked.fetch(asked, step, Path(room, "step")), where), str(step["name"])
    if said and all(one.state == FAILED and one.reason == said[0].reason for one in said):
        raise ObserveError(str(said[0].reason), "data of a step are a directory with meta.json and *.parquet")
    if args.json:
        print(json.dumps({"version": 1, "step": name, "detectors": [_plain(one) for one in said]}, indent=2))
    else:
        _print(said)
    return int(any(one.state == FAILED for one in said))


def own_detectors(args: argparse.Namespace, settings: config.Config) -> str:
    """Return where the site's own detectors are. Raises ObserveError: there is no such directory, and it was named."""
    if args.detectors and not Path(args.detectors).is_dir():
        raise ObserveError(f"{args.detectors} is no directory of detectors", "one file NAME.py each: docs/detectors.md")
    return str(args.detectors or settings.keep.detectors)


def _is_path(word: str) -> bool:
    return "/" in word or Path(word).is_dir()


def _print(said: list[Judged]) -> None:
    for one in said:
        for found in one.findings:
            sure = (
                f"; on made runs without this fault at most {100 * (1 - found.confidence):.1f} % say so"
                if found.confidence
                else ""
            )
            print(f"{one.detector}: {found.text}{sure}")
            if found.start is not None and found.end is not None:
                print(f"    {_moment(found.start)} to {_moment(found.end)} UTC")
            print(f"    {found.advice}")
    by_state = {state: [one for one in said if one.state == state] for state in (FOUND, NOTHING, UNKNOWN, FAILED)}
    counts = f"{len(by_state[FOUND])} found something, {len(by_state[NOTHING])} nothing"
    print(f"{texts.counted(len(said), 'detector')}: {counts}, {len(by_state[UNKNOWN])} cannot tell")
    for state, word in ((UNKNOWN, "cannot tell"), (FAILED, "failed")):
        for one in by_state[state]:
            print(f"    {one.detector} {word}: {one.reason}")


def _moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1e9, UTC):%Y-%m-%d %H:%M:%S}"


def _plain(one: Judged) -> dict[str, object]:
    columns = finding.rows([one])
    keys = [key for key in columns if key not in ("detector", "version")]
    found = [dict(zip(keys, values, strict=True)) for values in zip(*(columns[key] for key in keys), strict=True)]
    for each in found:
        each["evidence"] = json.loads(each["evidence"])
    state = {"detector": one.detector, "version": one.version, "state": one.state, "reason": one.reason}
    return state | {"findings": found, "layout": layout.VERSION}


def _list(args: argparse.Namespace, where: str) -> int:
    status = 0
    listed: list[dict[str, Any]] = []
    for name in finding.names(where):
        try:
            one = finding.load(name, where)
        except ObserveError as error:
            listed.append({"name": name, "cannot_be_used": error.message})
            status = 1
            continue
        measured = finding.rates().get(name, {}).get("measured", []) if finding.is_own(one) else []
        listed.append({
            "name": name, "version": one.version, "text": one.text, "how": one.how, "needs": one.needs,
            "effect": one.effect, "unit": one.unit, "confidence": finding.confidence(name, one.version),
            "measured": measured,
            "limits": {key: vars(limit) for key, limit in one.limits.items()},
        })  # fmt: skip
    if args.json:
        print(json.dumps({"version": 1, "detectors": listed}, indent=2))
        return status
    for each in listed:
        if "cannot_be_used" in each:
            print(f"{each['name']}\n    cannot be used: {each['cannot_be_used']}")
            continue
        unit = f" {each['unit']}" if each["unit"] not in ("", "1") else ""
        print(f"{each['name']}\n    {each['text']}\n    by: {each['how']}\n    needs: {each['needs']}")
        print(f"    meant for effects from {each['effect']:g}{unit} on{' (a share)' if each['unit'] == '1' else ''}")
        for rate in each["measured"]:
            print(
                f"    on made runs ({rate['generator']}, {rate['date']}): wrong in {rate['false_positives']} of "
                f"{rate['clean']} clean ones, found in {rate['found']} of {rate['faulty']} faulty ones"
            )
    return status
