"""The scripted GPUs, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    """Sample a script and return the data set."""
    return lambda script, seconds, *more: simulation.simulate(libraries, tmp_path / "data", script, seconds, *more)


@pytest.fixture
def hands() -> Hands:
    """A clock."""
    return Hands()


@pytest.fixture
def report(simulate: Callable[..., Dataset]) -> Callable[..., Summary]:
    """Sample a script and return its summary."""
    return lambda *arguments: summarise(simulate(*arguments))
