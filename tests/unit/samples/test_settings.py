"""What may stand in `[score]`."""

from __future__ import annotations

import pytest
from piolet.base.errors import ConfigError
from piolet.samples.settings import weights_of


def test_weights_that_are_left_out_are_1() -> None:
    assert weights_of("memory=2, communication=0.5") == {"compute": 1, "memory": 2, "communication": 0.5}
    assert weights_of("") == {"compute": 1, "memory": 1, "communication": 1}


@pytest.mark.parametrize("text", ["memory", "disk=1", "memory=-1", "memory=nan", "memory=x", "memory=1e9"])
def test_what_is_no_weight_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no weight"):
        weights_of(text)


def test_something_has_to_count() -> None:
    with pytest.raises(ConfigError, match="all weights are 0"):
        weights_of("compute=0,memory=0,communication=0")
