"""`piolet image`: pull, list, pin, rm, import, build, verify, prune.

A thin layer: what is asked goes to the image service, or to the user's own store where EDF_IMAGESTORE
is set.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from piolet.base import texts, units
from piolet.base.errors import ImageError, UsageError
from piolet.cli import imagebuild, thismachine
from piolet.cli.main import printable
from piolet.cli.progress import progress
from piolet.images import client, findings
from piolet.images.reference import is_path
from piolet.site.config import Config


def add_parser(subparsers: Any) -> None:
    """Add `image` and what is below it to the `piolet` command."""
    parser = subparsers.add_parser("image", help="pull, list and remove container images")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    pull = actions.add_parser("pull", help="bring an image into the store, if it is not there")
    pull.add_argument("reference", metavar="REF", help="for example ubuntu:24.04")
    pull.add_argument("--refresh", action="store_true", help="ask the registry again what the tag means")
    pull.add_argument("-Q", "--quiet", action="store_true", help="show no progress")
    actions.add_parser("list", help="the images that you may use")
    for name, text in (("pin", "have an image stay, however long nobody uses it"), ("unpin", "take that back")):
        pin = actions.add_parser(name, help=text)
        pin.add_argument("target", metavar="REF|DIGEST", help="a reference, or sha256: and at least 8 digits")
    remove = actions.add_parser("rm", help="remove an image")
    remove.add_argument("target", metavar="REF|DIGEST", help="a reference, or sha256: and at least 8 digits")
    bring = actions.add_parser("import", help="bring in an image from an archive")
    bring.add_argument("source", metavar="SOURCE", help="FILE, oci-archive:FILE, docker-archive:FILE or oci:DIRECTORY")
    bring.add_argument("-Q", "--quiet", action="store_true", help="show no progress")
    bring.add_argument("--name", metavar="NAME[:TAG]", help="file it as localhost/NAME:TAG (default: the file's name)")
    imagebuild.add_parser(actions)
    verify = actions.add_parser("verify", help="whether images are still what was converted")
    which = verify.add_mutually_exclusive_group(required=True)
    which.add_argument("target", metavar="REF|DIGEST", nargs="?", help="a reference, or sha256: and at least 8 digits")
    which.add_argument("--all", action="store_true", help="every image that you may use")
    prune = actions.add_parser("prune", help="remove images that were not used for long, or convert old ones again")
    what = prune.add_mutually_exclusive_group()
    what.add_argument("--older-than", default="30d", metavar="AGE", help="30d, 12h, 90min (default: 30d)")
    old = "instead, have images of an older release converted again, from their registries"
    what.add_argument("--old-format", action="store_true", help=old)
    prune.add_argument("--dry-run", action="store_true", help="only say what would be done")


def run(args: argparse.Namespace, config: Config) -> int:
    """Do what the parsed command line asks; returns the exit status, raises PioletError."""
    actions: dict[str, Callable[[argparse.Namespace, Config], int]] = {
        "pull": _pull,
        "list": _list,
        "rm": _remove,
        "pin": _pin,
        "unpin": _pin,
        "import": _import,
        "build": _build,
        "verify": _verify,
        "prune": _prune,
    }
    return actions[args.action](args, config)


def _pull(args: argparse.Namespace, config: Config) -> int:
    if is_path(args.reference):
        raise UsageError(f"{args.reference} is a file, and needs no pull", "name it in the definition as it is")
    refusal = thismachine.refusal(args.reference, config)
    if refusal is not None:  # the store is every node's, and others may differ
        print(f"piolet: warning: {printable(refusal.message)}", file=sys.stderr)
    with progress(quiet=args.quiet) as show:
        info = client.find(args.reference, config.images, "refresh" if args.refresh else "pull", show)
    for text in info.warnings:
        print(f"piolet: warning: {printable(text)}", file=sys.stderr)
    print(f"{info.image.reference} {info.image.digest}")
    return 0


def _list(_: argparse.Namespace, config: Config) -> int:
    own = client.own_store()
    if own is None:
        entries = client.ask(config.images, {"op": "list"}, lambda _: None).get("entries", [])
    else:
        from piolet.images import personal

        entries = personal.manage(config.images, own, lambda store: {"entries": store.entries(os.geteuid())})["entries"]
    _table(entries)
    return 0


def _remove(args: argparse.Namespace, config: Config) -> int:
    own = client.own_store()
    if own is None:
        done = client.ask(config.images, {"op": "rm", "target": args.target}, lambda _: None)
    else:
        from piolet.images import personal

        done = personal.manage(config.images, own, lambda store: store.remove(os.geteuid(), args.target))
    print(f"removed {done['removed']}")
    return 0


def _pin(args: argparse.Namespace, config: Config) -> int:
    own, wanted = client.own_store(), args.action == "pin"
    if own is None:
        done = client.ask(config.images, {"op": args.action, "target": args.target}, lambda _: None)
    else:
        from piolet.images import personal

        done = personal.manage(config.images, own, lambda store: store.pin(os.geteuid(), args.target, wanted))
    print(f"{'pinned' if wanted else 'no longer pinned'}: {done['reference']} {done['digest']}")
    return 0


def _verify(args: argparse.Namespace, config: Config) -> int:
    own = client.own_store()
    with progress() as show:
        if own is None:
            entries = client.ask(config.images, {"op": "verify", "target": args.target}, show).get("entries", [])
        else:
            from piolet.images import personal

            entries = personal.verify(config.images, own, args.target, show)["entries"]
    _table(entries, "STATE", lambda entry: str(entry["state"]))
    bad = [entry for entry in entries if entry["state"] in ("damaged", "unreadable")]
    if bad:
        raise ImageError(
            f"{len(bad)} of {len(entries)} images cannot be trusted: {', '.join(e['digest'][:19] for e in bad[:5])}",
            "remove it and pull it again; a public one is removed by an administrator: piolet image rm DIGEST",
        )
    if any(entry["state"] == "no record" for entry in entries):
        print("no record: converted by an older release; remove it and pull it again to have one")
    return 0


def _prune(args: argparse.Namespace, config: Config) -> int:
    if args.old_format:
        return _renew(config, args.dry_run)
    seconds = _age(args.older_than)
    own = client.own_store()
    if own is None:
        request = {"op": "prune", "older_than_s": seconds, "dry_run": args.dry_run}
        entries = client.ask(config.images, request, lambda _: None).get("entries", [])
    else:
        from piolet.images import personal

        entries = personal.manage(
            config.images, own, lambda store: {"entries": store.prune(os.geteuid(), seconds, args.dry_run)}
        )["entries"]
    total = sum(entry["size"] for entry in entries)
    if entries:
        _table(entries)
    print(f"{'would remove' if args.dry_run else 'removed'} {len(entries)} images, {units.size(total)}")
    return 0


def _renew(config: Config, dry_run: bool) -> int:
    from piolet.images import renewal

    if client.own_store() is not None:
        raise UsageError("images in a store of your own are used as they are", "unset EDF_IMAGESTORE for the site's")
    with progress() as show:
        entries = renewal.renew(config.images, show, dry_run=dry_run)
    if entries:
        _table(entries, "STATE", lambda entry: str(entry["state"]))
    of = {state: [e for e in entries if e["state"] == state] for state in (renewal.DONE, renewal.TO_DO)}
    done = of[renewal.TO_DO if dry_run else renewal.DONE]
    print(f"{'would convert' if dry_run else 'converted'} {len(done)} of {len(entries)} images of an older release")
    if any(entry["state"] == renewal.IMPORTED for entry in entries):
        print("imported: it is in no registry; piolet image import of its archive converts it again")
    failed = [entry for entry in entries if entry["state"] == renewal.FAILED]
    for entry in failed:
        name = (entry["references"] or [entry["digest"][:19]])[0]
        print(f"piolet: warning: {printable(name)}: {printable(entry['why'].message)}", file=sys.stderr)
    if failed:
        raise ImageError(
            f"{len(failed)} of {len(entries)} images could not be converted again, and are as they were",
            "who may pull a private one has it done: piolet image prune --old-format; one that its registry no longer "
            "has works on where it did",
        )
    return 0


def _import(args: argparse.Namespace, config: Config) -> int:
    kind, path = _source(args.source)
    done = bring(kind, path, args.name or _name_of(path), config, quiet=args.quiet)
    print(f"{done['reference']} {done['digest']}")
    return 0


def bring(kind: str, path: str, name: str, config: Config, *, quiet: bool) -> dict[str, Any]:
    """Bring in the archive or directory at `path`, and return what the store says of it. Raises ImageError."""
    with progress(quiet=quiet) as show, _archive(kind, path) as fd:
        kind = "oci-archive" if kind == "oci" else kind
        own = client.own_store()
        if own is None:
            return client.ask(config.images, {"op": "import", "kind": kind, "name": name}, show, fd)
        from piolet.images import personal

        return personal.bring(config.images, own, kind, fd, name, show)


def _build(args: argparse.Namespace, config: Config) -> int:
    archive = imagebuild.run(args, config)
    if archive is None:
        print(os.path.abspath(args.output))
        return 0
    try:
        name = args.name or _name_of(args.context)
        return _import(argparse.Namespace(source=f"oci-archive:{archive}", name=name, quiet=args.quiet), config)
    finally:
        shutil.rmtree(os.path.dirname(archive), ignore_errors=True)


def _source(text: str) -> tuple[str, str]:
    """Return the kind and the path in what a user wants imported."""
    if text.endswith((".sqsh", ".squashfs")):
        raise ImageError(
            f"{text} is a SquashFS file, which is not imported: a store holds only what Piolet has written itself",
            'use the file as it is: image = "/path/to/file.sqsh"',
        )
    for kind in ("oci-archive", "docker-archive", "oci"):
        if text.startswith(kind + ":"):
            return kind, text.removeprefix(kind + ":")
    return ("oci" if os.path.isdir(text) else "archive"), text  # which kind of archive is seen by who reads it


def _name_of(path: str) -> str:
    name = os.path.basename(os.path.abspath(path)).lower()
    for suffix in (".tar.gz", ".tgz", ".tar", ".oci"):
        name = name.removesuffix(suffix)
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "image"


@contextlib.contextmanager
def _archive(kind: str, path: str) -> Iterator[int]:
    """Give an open descriptor of the archive; of a directory, what it needs is sent through a pipe as it is packed."""
    if kind != "oci":
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"cannot read the archive {path}: {error.strerror}") from None
        try:
            yield fd
        finally:
            os.close(fd)
        return
    from piolet.images import layout

    with layout.opened(path) as found:
        reading, writing = os.pipe()
        packer = threading.Thread(target=layout.pack, args=(found, writing), daemon=True)
        packer.start()
        try:
            yield reading
        finally:
            os.close(reading)  # a packer that is not done ends by EPIPE
            packer.join(10)


def _age(text: str) -> float:
    seconds = units.seconds_of(text)
    if seconds is None:
        raise UsageError(f"'{text}' is not an age", "write a number and s, min, h, d or w: 30d")
    return seconds


def _table(
    entries: list[dict[str, Any]],
    title: str = "ACCESS",
    shown: Callable[[dict[str, Any]], str] = lambda entry: str(entry["access"]),
) -> None:
    scans = any(entry.get("scan") for entry in entries)
    rows = [("REFERENCE", "DIGEST", "SIZE", "UNUSED FOR", "SIGNED", *(("FINDINGS",) if scans else ()), title)]
    for entry in entries:
        for number, reference in enumerate(entry["references"] or ["-"]):
            first = number == 0
            rows.append(
                (
                    reference,
                    entry["digest"][:19],
                    units.size(entry["size"]) if first else '"',
                    units.age(entry["unused_s"]) if first else '"',
                    (entry.get("signed") or "-") if first else '"',
                    *((findings.told(entry.get("scan"), time.time()) if first else '"',) if scans else ()),
                    shown(entry) if first else '"',
                )
            )
    for line in texts.columns(rows):
        print(line.rstrip())
