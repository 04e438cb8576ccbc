"""The scripted GPUs, compiled once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.samples.dataset import Dataset
from piolet.score.summary import Summary, summarise

from tests.score import simulation
from tests.score.hands import Hands


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fake libraries are."""
    return simulation.build(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def simulate(libraries: Path, tmp_path: Path) -> Callable[..., Dataset]:
    """Sample a script and return the data set, each in a directory of its own, the first one in "data"."""
    count = itertools.count()

    def sampled(script: str, seconds: float, *more: Any, **options: Any) -> Dataset:
        number = next(count)
        return simulation.simulate(libraries, tmp_path / f"data{number or ''}", script, seconds, *more, **options)

    return sampled


@pytest.fixture
def hands() -> Hands:
    """A clock."""
    return Hands()


@pytest.fixture
def report(simulate: Callable[..., Dataset]) -> Callable[..., Summary]:
    """Sample a script and return its summary."""
    return lambda *arguments, **options: summarise(simulate(*arguments, **options))
