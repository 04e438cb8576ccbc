"""The output of an image's entrypoint is seen: here it always is."""

from __future__ import annotations

from collections.abc import Iterable

from piolet.api import Asked, Entry, Hook, Node, Step


class EntrypointLog(Hook):
    """Nothing to do: an entrypoint runs in front of the command, as the task, with the task's output."""

    name = "entrypoint_log"
    text = "show the output of the image's entrypoint (it always is shown)"
    source = "CSCS, differences to pyxis: com.pyxis.entrypoint_log; read 2026-11-29"

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Return nothing."""
        return ()
