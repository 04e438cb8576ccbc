"""The command line of the cluster tool. The only place that prints an error and chooses an exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tools.cluster import lifecycle
from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY, layout_for
from tools.cluster.report import Report


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m tools.cluster", description="A private Slurm cluster to play with.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--dir", type=Path, default=REPOSITORY / "build" / "cluster", help="where it lives")
    up = commands.add_parser("up", parents=[where], help="start a cluster")
    up.add_argument("--nodes", type=int, default=4, help="how many nodes (default: 4)")
    up.add_argument("--gpus", type=int, default=0, help="how many simulated GPUs each node has (default: 0)")
    up.add_argument("--cgroups", action="store_true", help="steps have control groups: memory, processors, devices")
    up.add_argument("--private-tmp", action="store_true", help="jobs have a /tmp and a /dev/shm of their own")
    up.add_argument("--accounting", action="store_true", help="with a slurmdbd: sacct and sacctmgr have what to say")
    up.add_argument("--central", action="store_true", help="with a central service, and a forwarder on each node")
    up.add_argument("--first-job", type=int, default=1, help="the number of the first job (default: 1)")
    up.add_argument("--from-rpm", type=Path, metavar="ROOT", help="run what RPMs installed below ROOT, not build/")
    up.add_argument("--without-piolet", action="store_true", help="plain Slurm, no plugin and no daemons of ours")
    commands.add_parser("down", parents=[where], help="end it; accounts, image and logs stay")
    commands.add_parser("status", parents=[where], help="what runs; exit status 1 if that is not all")
    commands.add_parser("purge", parents=[where], help="end it and remove all that it made on this machine")
    start = commands.add_parser("start-pioletd", parents=[where], help="start pioletd on a node where it ended")
    start.add_argument("node")
    stop = commands.add_parser("stop-pioletd", parents=[where], help="end pioletd on a node")
    stop.add_argument("node")
    stop.add_argument("--kill", action="store_true", help="with SIGKILL instead of SIGTERM")
    return root


def run(arguments: argparse.Namespace, report: Report) -> int:
    layout = layout_for(arguments.dir)
    match arguments.command:
        case "up":
            request = lifecycle.Request(
                arguments.nodes,
                not arguments.without_piolet,
                arguments.gpus,
                arguments.cgroups,
                arguments.private_tmp,
                arguments.accounting,
                arguments.central,
                arguments.first_job,
            )
            root = arguments.from_rpm
            lifecycle.up(replace(layout, installed=root.resolve() if root else None), request, report)
        case "down":
            lifecycle.down(layout, report)
        case "status":
            return 0 if lifecycle.status(layout, report) else 1
        case "purge":
            lifecycle.purge(layout, report)
        case "start-pioletd":
            lifecycle.restart_pioletd(layout, arguments.node)
        case "stop-pioletd":
            lifecycle.stop_pioletd(layout, arguments.node, signal.SIGKILL if arguments.kill else signal.SIGTERM)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    # Users read what we write, whatever mask root's shell has.
    os.umask(0o022)
    # Being ended must clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments = parser().parse_args(argv)
    try:
        return run(arguments, Report())
    except ClusterError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"the cluster tool failed: {error}", file=sys.stderr)
        return 1
