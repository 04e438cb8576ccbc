"""What tests of vetting share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vet.recorded import Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)
