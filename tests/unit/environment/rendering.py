"""An image that a resolver knows, and how a definition that is refused is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from piolet.base.errors import PioletError
from piolet.environment.render import Rendered
from piolet.images.info import Image, ImageInfo

DIGEST = "sha256:" + "a" * 64
INFO = ImageInfo(
    Image("img", "site", DIGEST),
    env={"PATH": "/image/bin", "HOME": "/root", "SHELL": "/bin/ash", "SLURM_X": "1", "PMIX_Y": "1", "LANG": "C.UTF-8"},
    entrypoint=("/entry", "--now"),
    workdir="/image/work",
)

Render = Callable[..., Rendered]


def refusal(made: Render, text: str, **bases: str) -> PioletError:
    with pytest.raises(PioletError) as caught:
        made(text, **bases)
    return caught.value
