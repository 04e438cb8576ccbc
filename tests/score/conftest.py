"""The scripted GPUs, compiled once."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.samples.dataset import Dataset, open_dataset
from piolet.score.summary import Summary, summarise

from tests.score import simulation
from tests.score.hands import Hands


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fake libraries are."""
    return simulation.build(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="session")
def sampled(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Sample a script and return the directory, the same for the same words: the script's time is no clock's."""

    @functools.cache
    def once(*words: Any, **options: Any) -> Path:
        directory = tmp_path_factory.mktemp("sampled")
        simulation.simulate(libraries, directory, *words, **options)
        return directory

    return once


@pytest.fixture
def simulate(sampled: Callable[..., Path], tmp_path: Path) -> Callable[..., Dataset]:
    """Sample a script and return the data set, each in a directory of its own, the first one in "data"."""
    count = itertools.count()

    def copied(*words: Any, **options: Any) -> Dataset:
        number = next(count)
        return open_dataset(shutil.copytree(sampled(*words, **options), tmp_path / f"data{number or ''}"))

    return copied


@pytest.fixture
def hands() -> Hands:
    """A clock."""
    return Hands()


@pytest.fixture
def report(simulate: Callable[..., Dataset]) -> Callable[..., Summary]:
    """Sample a script and return its summary."""
    return lambda *arguments, **options: summarise(simulate(*arguments, **options))
