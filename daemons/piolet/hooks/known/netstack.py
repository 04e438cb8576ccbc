"""Which network stack the hooks cxi and aws_ofi_nccl take: these are options of theirs, and do nothing alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from piolet.api import Asked, Entry, Hook, Node, Refused, Step
from piolet.hooks.known import _fabric


class Netstack(Hook):
    """Options for cxi and aws_ofi_nccl."""

    name = "netstack"
    text = "which network stack cxi and aws_ofi_nccl take: the node's own, or one that the site keeps for containers"
    source = "CSCS, container engine, hooks; read 2026-11-29"
    hardware = "HPE Slingshot"
    options: ClassVar[dict[str, str]] = {
        "source": "host, artifact, or artifact:VERSION",
        "version": "of an artifact: a release, or latest",
        "name": "of an artifact: which one of the release, or default",
    }
    settings: ClassVar[dict[str, str]] = {
        "base": "directory of the site's stacks, which lie at BASE/MACHINE/VERSION/NAME",
        "source": "what is taken where a definition does not say (host)",
        "version": "likewise (latest)",
        "name": "likewise (default)",
    }

    def check(self, asked: Asked) -> None:
        """Only what can be meant."""
        kind, _, named = asked.options.get("source", "host").partition(":")
        if kind not in _fabric.SOURCES or (named and kind != "artifact"):
            raise Refused(f"source is {' or '.join(_fabric.SOURCES)}, not '{asked.options['source'][:80]}'")
        values = {**asked.options, "version": named} if named else asked.options
        for name in ("version", "name"):
            if "/" in values.get(name, "") or values.get(name) in ("", ".", ".."):
                raise Refused(f"{name} is the name of a directory, without a slash")

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Return nothing: the hooks that use a stack read these options."""
        return ()
