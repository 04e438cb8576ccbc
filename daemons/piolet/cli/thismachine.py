"""What pioletd of this machine has found of its kernel, for whoever is about to pull an image.

Only of this very machine is anything known: in a job that is one of the job's nodes, on a workstation all there is. On
a login node without pioletd nothing is known, and nothing is said.
"""

from __future__ import annotations

import os

from piolet.base.errors import ImageError
from piolet.images.reference import is_path
from piolet.site.config import Config


def refusal(reference: str, settings: Config) -> ImageError | None:
    """Return why this machine would refuse a step with the image, or None where that is not known to be so.

    Of the user's own files and store it is known only that a kernel is too old for any container.
    """
    if not os.path.isdir(settings.node.state):
        return None
    from piolet.node.root import imagemounts  # not where there is no pioletd

    choice = imagemounts.noted(settings.node.state)
    own = is_path(reference) or bool(os.environ.get("EDF_IMAGESTORE"))
    if choice is None or not (choice.refusal or (not choice.way and not own)):
        return None
    node = os.environ.get("SLURMD_NODENAME")
    hint = f"{choice.hint}; for other nodes, which may differ, pull it first: piolet image pull {reference}"
    return ImageError(f"{f'node {node}' if node else 'this machine'}: {choice.describe()}", hint)
