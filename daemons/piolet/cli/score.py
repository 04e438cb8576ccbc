"""`piolet score`: sample a local command, and report on data sets.

A data set is named by its directory, or as JOB or JOB.STEP where `--score` has put it: among the user's results
(observe/results.py), or piolet-score-JOB.STEP in the current directory. Standard output has the result only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piolet.base.errors import ScoreError, UsageError
from piolet.cli.files import write
from piolet.cli.main import printable
from piolet.site.config import Config

PREFIX = "piolet-score-"
_PERIOD_LEAST = 0.01


def add_parser(subparsers: Any) -> None:
    """Add `score` and what is below it to the `piolet` command."""
    parser = subparsers.add_parser("score", help="how much of the GPUs a step used: report, compare, export")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run = actions.add_parser("run", help="sample while a command runs here, without Slurm")
    run.add_argument("--out", type=Path, metavar="DIR", help=f"the data set (default: {PREFIX}local-TIME)")
    run.add_argument("--interval", type=_interval, default=0.1, metavar="TIME", help="100ms, 1s (default: 100ms)")
    run.add_argument("--collector", default="auto", help="auto, gpm, dcgm, nvml or host (default: auto)")
    run.add_argument("--gpus", metavar="LIST", help="UUIDs or indices (default: CUDA_VISIBLE_DEVICES, else all)")
    run.add_argument("--label", default="", help="a name for the report")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    weights = {"metavar": "LIST", "help": "of the aggregated picture: compute=2,memory=1 (default: the site's)"}
    for name, text in (
        ("show", "print the summary"),
        ("report", "write the report"),
        ("watch", "follow a running step"),
    ):
        one = actions.add_parser(name, help=text)
        one.add_argument("data", metavar="DIR|JOB[.STEP]")
        one.add_argument("--calibration", type=Path, metavar="FILE", help="peaks from `piolet score calibrate`")
        if name != "watch":
            one.add_argument("--weights", **weights)
        if name == "report":
            one.add_argument(
                "--out", type=Path, metavar="FILE", help="the HTML file (default: report.html in the data set)"
            )
            one.add_argument("--pdf", action="store_true", help="a PDF beside it")
            one.add_argument("--png", action="store_true", help="a PNG of each figure beside it")
        if name == "watch":
            one.add_argument("--interval", type=_interval, default=2.0, metavar="TIME", help="between updates (2s)")
    submit = actions.add_parser("submit", help="check what stands after --score=, for the plugin in srun")
    submit.add_argument("--record-fd", metavar="N", type=int, required=True, help="the descriptor to write to")
    submit.add_argument("request", metavar="REQUEST", help="what stands after --score=")
    end = actions.add_parser("end", help="show the score of a step that has just ended, for the plugin in srun")
    end.add_argument("--job", type=int, required=True)
    end.add_argument("--step", type=int, required=True)
    two = actions.add_parser("compare", help="the difference of two steps, with its uncertainty")
    two.add_argument("a", metavar="A")
    two.add_argument("b", metavar="B")
    two.add_argument("--calibration", type=Path, metavar="FILE", help="peaks from `piolet score calibrate`")
    export = actions.add_parser("export", help="CSV of all samples, or JSON or OpenMetrics of the summary")
    export.add_argument("data", metavar="DIR|JOB[.STEP]")
    export.add_argument("--format", choices=("csv", "json", "openmetrics"), default="json")
    export.add_argument("--calibration", type=Path, metavar="FILE", help="peaks from `piolet score calibrate`")
    bring = actions.add_parser("import", help="make a data set of each step that GSSR recorded (JSON or CSV)")
    bring.add_argument("source", type=Path)
    bring.add_argument("out", type=Path, metavar="DIR")
    bring.add_argument("--gpu-model", default="", help="for example 'NVIDIA GH200': GSSR does not record it")
    certify = actions.add_parser("certificate", help="one page and JSON of what steps made of their GPUs, signed")
    certify.add_argument("data", nargs="+", metavar="DIR|JOB[.STEP]")
    certify.add_argument("--out", type=Path, metavar="FILE", help="the JSON (piolet-certificate-JOB.STEP.json)")
    certify.add_argument("--key", type=Path, metavar="FILE", help="an SSH key (default: the site's, if it can be read)")
    certify.add_argument("--unsigned", action="store_true", help="do not sign it")
    certify.add_argument("--calibration", type=Path, metavar="FILE", help="peaks from `piolet score calibrate`")
    check = actions.add_parser("verify", help="whether a certificate is signed by the site, and what it says")
    check.add_argument("file", type=Path, metavar="FILE", help="the JSON; its signature is beside it")
    check.add_argument("data", nargs="*", metavar="DIR", help="data sets that should be those of the certificate")
    check.add_argument("--signers", type=Path, metavar="FILE", help="allowed signers (default: the site's)")
    calibrate = actions.add_parser("calibrate", help="peaks of a GPU model, from data sets of saturating loads")
    calibrate.add_argument("data", nargs="+", metavar="DIR|JOB[.STEP]")
    calibrate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file to write")
    calibrate.add_argument("--simulated", action="store_true", help="accept simulated figures (for trying it out)")


def run(args: argparse.Namespace, config: Config) -> int:
    """Do what the parsed command line asks; returns the exit status, raises PioletError."""
    if args.action in ("submit", "end"):
        from piolet.cli import scored

        if args.action == "submit":
            return scored.submit(args.request, args.record_fd, args.config, config)
        return scored.end(args.job, args.step, config, _screen)
    if args.action != "verify":
        _find_data(args, config)
    if args.action in ("certificate", "verify"):
        from piolet.cli import certificate

        if args.action == "verify":
            return certificate.verify(args, config.score)
        return certificate.make(args, config.score, locate)
    if getattr(args, "weights", None) is None:
        args.weights = config.score.weights
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": functools.partial(_run, bound=config.score.node_mb * 1_000_000),
        "show": _show,
        "report": _report,
        "watch": _watch,
        "compare": _compare,
        "export": _export,
        "import": _import,
        "calibrate": _calibrate,
    }
    return actions[args.action](args)


def _find_data(args: argparse.Namespace, config: Config) -> None:
    """Put directories in the place of the names of data sets. Raises UsageError."""
    from piolet.observe import results
    from piolet.system.accounts import own_name

    place = results.place_of(os.environ, config.results.directory, own_name(), config.events.cluster)
    for field in ("data", "a", "b"):
        named = getattr(args, field, None)
        if isinstance(named, list):
            setattr(args, field, [str(locate(name, place=place)) for name in named])
        elif named is not None:
            setattr(args, field, str(locate(named, place=place)))


def locate(name: str, where: Path | None = None, place: str | None = None) -> Path:
    """Return the directory of a data set that was named by it, by JOB or by JOB.STEP. Raises UsageError.

    where   the directory to look in; None: the current one
    place   where the user's results are; None: nowhere
    """
    if Path(name).is_dir():
        return Path(name)
    where = where or Path.cwd()
    exact = where / f"{PREFIX}{name}"
    if exact.is_dir():
        return exact
    several = sorted(where.glob(f"{PREFIX}{name}.*")) if name.isdecimal() else []
    if place is not None:
        from piolet.observe import results

        if (kept := results.find(place, results.SCORE, name)) is not None:
            return kept
        several += results.of_job(place, results.SCORE, int(name)) if name.isdecimal() else []
    if len(several) == 1:
        return several[0]
    if several:
        steps = ", ".join(path.name.removeprefix(PREFIX) for path in several)
        raise UsageError(f"job {name} has several steps with a score", f"name one: {steps}")
    lies = f"there is none below {place}, nor is there {exact}" if place else f"there is no {exact}"
    hint = "name its directory, or JOB or JOB.STEP" if "/" in name else f"it is no directory, and {lies}"
    raise UsageError(f"there is no data set {name}", hint)


def _interval(text: str) -> float:
    from piolet.samples.request import period_of

    try:
        return period_of(text, _PERIOD_LEAST)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no interval from 10ms to 1h, as 100ms or 1s") from None


def _summary(name: str, calibration: Path | None, weights: str = "", detail: bool = False) -> Any:
    from piolet.samples.dataset import open_dataset
    from piolet.samples.settings import weights_of
    from piolet.score.saturation import Weights
    from piolet.score.summary import summarise

    peaks, counted = _peaks(calibration), Weights(**weights_of(weights))
    return summarise(open_dataset(locate(name)), peaks, detail, counted)


def _peaks(path: Path | None) -> Any:
    from piolet.score import peaks

    return None if path is None else peaks.from_file(path)


def _screen(summary: Any, stream: Any) -> str:
    from piolet.score.report.screen import render

    try:
        width = min(120, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        width = 100
    color = stream.isatty() and "NO_COLOR" not in os.environ
    texts = {f.name: _cleaned(getattr(summary, f.name)) for f in dataclasses.fields(summary) if f.name != "view"}
    return str(render(dataclasses.replace(summary, **texts), max(60, width), color=color))


def _cleaned(value: Any) -> Any:
    """Return what a data set says with all its texts printable: it may be somebody else's."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, tuple):
        return tuple(map(_cleaned, value))
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _cleaned(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def _run(args: argparse.Namespace, bound: int) -> int:
    from piolet.samples import local
    from piolet.samples.choose import NAMES
    from piolet.samples.journal import SUFFIX

    def summary() -> Any:
        from piolet.score.overview import summary_of

        return summary_of

    command = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not command:
        raise UsageError("there is no command to run", "piolet score run -- python train.py")
    if args.collector not in NAMES:
        raise UsageError(f"there is no collector '{args.collector}'", f"there are: {', '.join(NAMES)}")
    directory = args.out or _new_directory()
    chosen = args.gpus if args.gpus is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = None if chosen is None else tuple(filter(None, (part.strip() for part in chosen.split(","))))
    status = local.run(command, directory, args.interval, args.collector, gpus, args.label, bound, summary)
    try:
        from piolet.samples import dataset
        from piolet.score.summary import summarise

        for path in directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(
                ScoreError
            ):  # of a sampler that was killed, or on a full disk: it can be read as it is
                dataset.finish(path, summary())
        print(_screen(summarise(dataset.open_dataset(directory)), sys.stderr), end="", file=sys.stderr)
        print(f"piolet: the samples are in {directory}; see: piolet score report {directory}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001 - whatever becomes of the scoring, the command's status is returned
        print(f"piolet: warning: no score: {printable(str(error))}", file=sys.stderr)
    return status


def _new_directory() -> Path:
    """Return a directory for this run, made now: others may begin in the same second."""
    name = f"{PREFIX}local-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = Path(name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            break
        except FileExistsError:
            continue
        except OSError:
            break  # whoever writes there says why
    return path


def _show(args: argparse.Namespace) -> int:
    print(_screen(_summary(args.data, args.calibration, args.weights), sys.stdout), end="")
    return 0


def _report(args: argparse.Namespace) -> int:
    from piolet.score.report import figures, html, screen

    summary = _summary(args.data, args.calibration, args.weights, detail=True)
    target = args.out or locate(args.data) / "report.html"
    write(target, html.render(summary).encode())
    print(target)
    if args.pdf:
        write(target.with_suffix(".pdf"), figures.pdf(summary, screen.render(summary)))
        print(target.with_suffix(".pdf"))
    if args.png:
        for name, title, _, figure in figures.figures(summary):
            path = target.with_name(f"{target.stem}-{name}.png")
            write(path, figures.png(figure, f"{summary.title}: {title}"))
            print(path)
    return 0


def _watch(args: argparse.Namespace) -> int:
    from piolet.samples.dataset import open_dataset
    from piolet.score.summary import summarise

    directory, peaks = locate(args.data), _peaks(args.calibration)
    while True:
        data = open_dataset(directory)
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(_screen(summarise(data, peaks, detail=False), sys.stdout), end="", flush=True)
        if all(node.facts.complete for node in data.nodes):
            return 0
        time.sleep(args.interval)


def _compare(args: argparse.Namespace) -> int:
    from piolet.score.compare import compare, render

    a, b = (_summary(name, args.calibration) for name in (args.a, args.b))
    print(printable(render(a, b, compare(a, b))), end="")
    return 0


def _export(args: argparse.Namespace) -> int:
    from piolet.samples.dataset import open_dataset
    from piolet.score import export

    if args.format == "csv":
        export.to_csv(open_dataset(locate(args.data)), sys.stdout)
        return 0
    summary = _summary(args.data, args.calibration)
    print(export.to_json(summary) if args.format == "json" else export.to_openmetrics(summary), end="")
    return 0


def _import(args: argparse.Namespace) -> int:
    from piolet.score.foreign import convert

    if not args.source.exists():
        raise UsageError(f"there is no {args.source}")
    for directory in convert(args.source, args.out, args.gpu_model):
        print(directory)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from piolet.samples.dataset import open_dataset
    from piolet.score.calibrate import calibrate
    from piolet.score.peaks import to_json

    found = calibrate([open_dataset(locate(name)) for name in args.data], args.simulated)
    write(args.out, to_json(found).encode())
    for model, peaks in found.items():
        print(f"{model}: {peaks.source}")
    return 0
