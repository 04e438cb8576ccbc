"""Which part of a node a verdict is of."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.vet import subjects

GPUS = [{"index": 0, "uuid": "GPU-a", "serial": "S0"}, {"index": 1, "uuid": "GPU-b"}]


@pytest.mark.parametrize(
    ("reason", "details", "found"),
    [
        ("GPU 0: rows wait to be remapped", {"gpus": GPUS}, {"subject": "gpu:GPU-a", "serial": "S0"}),
        ("GPU 1 is at 95 degC, 90 are allowed; GPU 1: XID 48", {"gpus": GPUS}, {"subject": "gpu:GPU-b"}),
        ("part 2 of GPU 1: memory", {"gpus": tuple(GPUS)}, {"subject": "gpu:GPU-b"}),
        ("GPU 0: a; GPU 1: b", {"gpus": GPUS}, {}),
        ("GPU 7: a", {"gpus": GPUS}, {}),
        ("GPU 0: a", {}, {}),
        ("2 of 4 GPUs are there", {"gpus": GPUS}, {}),
        ("mlx5_0 port 1 counts link_downed: 9", {}, {"subject": "port:mlx5_0/1"}),
        ("mlx5_0 port 1 is DOWN; mlx5_1 port 1 is DOWN", {}, {}),
        ("", {"gpus": GPUS}, {}),
        (7, {"gpus": GPUS}, {}),
        ("GPU 0: a", {"gpus": [1, {"index": "0", "uuid": 5}, {"index": 0, "uuid": "GPU-c", "serial": 9}]},
         {"subject": "gpu:GPU-c"}),
        ("GPU 0: a", [], {}),
    ],
)  # fmt: skip
def test_the_part_that_the_reason_names(reason: Any, details: Any, found: dict[str, str]) -> None:
    assert subjects.of({"reason": reason, "details": details}) == found
