"""What the program of `make demo-observe` tells the simulated GPUs, and how it reads. No cluster is started."""

from __future__ import annotations

import importlib.util
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import demo_observe


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, beside that of examples/demo as in the job's directory."""
    monkeypatch.syspath_prepend(str(demo_observe.EXAMPLES[0]))
    spec = importlib.util.spec_from_file_location("observed", demo_observe.EXAMPLES[1] / "observed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("train", None)


def test_a_gpu_is_told_for_how_long_it_did_what(program: Any, tmp_path: Path) -> None:
    """In the words of tests/simulators/nvml/driven.h."""
    gpu = program.Gpu(tmp_path / "gpu")
    began = time.monotonic()
    gpu.turns_to(program.COMPUTES)
    time.sleep(0.05)
    gpu.turns_to(program.POLLS)
    took = time.monotonic() - began
    turn, now, since, ready, computed, polled, again = struct.unpack("=QQd3dQ", (tmp_path / "gpu").read_bytes())
    assert (turn, again, now, polled) == (2, 2, program.POLLS, 0)
    assert 0.05 <= computed <= took and 0 <= ready < 1 and began <= since <= time.monotonic()


def test_batches_are_whole_rows_of_the_file(program: Any, tmp_path: Path) -> None:
    rows = np.zeros(3 * program.BATCH // program.ROW.itemsize, program.ROW)
    rows["x"], rows["y"] = np.arange(len(rows))[:, None], 1
    (tmp_path / "data").write_bytes(rows.tobytes())
    try:
        loader = program.Loader(tmp_path / "data", 1)
    except OSError as error:  # as on a tmpfs of Linux before 6.6
        pytest.skip(f"{tmp_path} cannot be read past the page cache: {error.strerror}")
    read = loader.read()
    assert np.array_equal(np.diff(read["x"][:, 0]), np.ones(len(read) - 1)) and set(read["y"]) == {1}
    x, y = loader.prepared(read)
    assert x.shape == (program.OF_GRADIENT, 2) and y.shape == (program.OF_GRADIENT,)
