"""`piolet top` of a step without `--score`: what its nodes told last, and what is missing of it."""

from __future__ import annotations

import math
from typing import Any

from piolet.observe import livekept, toptext


def gpu(*columns: str, **values: list[Any]) -> dict[str, Any]:
    """Return a table of GPUs."""
    names = ["gpu", "uuid", *values]
    many = len(next(iter(values.values())))
    rows = [[at, f"GPU-{at}", *(values[name][at] for name in values)] for at in range(many)]
    return {"columns": names, "rows": rows}


def told(**more: Any) -> dict[str, Any]:
    """Return what a node told, of two GPUs."""
    devices = [{"uuid": f"GPU-{at}", "name": "NVIDIA H100", "memory": 80e9} for at in range(2)]
    host = {"columns": ["cpu", "memory"], "rows": [[12.5, 44e9]]}
    zero = {name: [0.0, 0.0] for name in ("fp64", "fp32", "fp16")}
    table = gpu(engine=[1.0, 1.0], sm=[1.0, 1.0], tensor=[0.5, None], dram=[0.1, None], power=[600.0, 100.0],
                utilisation=[1.0, 0.4], memory_used=[40e9, 8e9], **zero)  # fmt: skip
    return {"age": 23.0, "ended": False, "span": 10.0, "devices": devices, "host": host, "gpu": table, **more}


def screen(said: dict[str, Any]) -> str:
    """Return the screen of an answer."""
    nodes, missing = livekept.nodes(said)
    return toptext.render(toptext.Shown("job 112", "RUNNING", 60.0, None, nodes, [], missing), 100, 40, False)


def test_a_node_by_its_last_frame() -> None:
    (node,), missing = livekept.nodes({"node1": told()})
    first, second = node.gpus
    assert first.saturation > 0.4 and first.limit == "compute" and first.memory == 0.5 and first.power == 600.0
    assert math.isnan(second.saturation) and math.isclose(second.utilisation, 0.4, rel_tol=1e-6)
    assert node.host == {"cpu": 12.5, "memory": 44e9} and node.age == 23.0
    assert missing == ["means over some 10 s, 23 s ago; with srun --score they are of the last five seconds"]
    text = screen({"node1": told()})
    assert "u 40" in text and "12.5" in text and "silent" not in text


def test_without_counters_it_says_why_and_shows_the_utilisation() -> None:
    table = gpu(utilisation=[0.9, 0.8], power=[300.0, 310.0])
    said = told(gpu=table, sources={"gpm": "the driver does not have it", "lustre": "there is none", "nvml": ""})
    nodes, missing = livekept.nodes({"node1": said, "node2": told()})
    assert [math.isnan(one.gpus[0].saturation) for one in nodes] == [True, False]
    assert missing[1] == "u: utilisation; node1 told no saturation: gpm: the driver does not have it"
    assert "u 90 u 80" in screen({"node1": said})


def test_a_node_that_is_silent_or_has_ended() -> None:
    assert "silent 2 min" in screen({"node1": told(age=120.0)})
    assert "ended" in screen({"node1": {"ended": True}})


def test_gpus_that_told_nothing_are_not_left_out() -> None:
    said = told()
    del said["gpu"]
    (node,), _ = livekept.nodes({"node1": said})
    assert len(node.gpus) == 2 and all(math.isnan(one.saturation) for one in node.gpus)


def test_what_comes_is_data() -> None:
    odd_ones: tuple[dict[str, Any], ...] = (
        {"gpu": 5}, {"gpu": {"columns": 5, "rows": [[1]]}}, {"gpu": {"columns": ["gpu"], "rows": [[], 5]}},
        {"devices": 5}, {"devices": [5]}, {"host": {"columns": ["cpu"], "rows": [["x"]]}}, {"span": "x"}, {"age": None},
        {"sources": []},
    )  # fmt: skip
    for odd in odd_ones:
        (node,), _ = livekept.nodes({"node1": {**told(), **odd}})
        assert node.name == "node1"
    assert livekept.nodes({"node1": 5}) == ([], [])
