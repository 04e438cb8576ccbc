"""The dashboard for Grafana: every query of it has an answer in a Prometheus that scrapes a node's endpoint."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.observe.layout import MORE_OF_HOST, TABLES
from piolet.observe.metrics import Figures, serve

from tests.support.prometheus import ask, scraping
from tests.support.registry import free_port
from tests.unit.observe.test_metrics import LIMIT_S, Kept, frame

DASHBOARD = Path(__file__).resolve().parents[3] / "etc" / "grafana" / "piolet-job.json"


def plots() -> Iterator[dict[str, Any]]:
    """Yield the panels that draw."""
    content = json.loads(DASHBOARD.read_text())
    yield from (panel for panel in content["panels"] if panel["type"] != "row")


def queries() -> dict[str, str]:
    """Return each query with its variables filled in, by its panel and letter."""
    values = {"$job": "7", "$node": ".+", "$__rate_interval": "30s"}
    found = {}
    for panel in plots():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = query
    return found


def whole_frame(value: float) -> dict[str, Any]:
    """Return a frame with all that there can be."""
    gpu = {quantity.name: value for quantity in GPU_QUANTITIES} | {"gpu": 0, "uuid": "GPU-a"}
    host = {quantity.name: value for quantity in (*HOST_QUANTITIES, *MORE_OF_HOST)}
    of_tables = {name: {c.name: value for c in TABLES[name] if c.unit and c.name != "span"} for name in ("io", "net")}
    io = of_tables["io"] | {"mount": "/scratch", "kind": "lustre", "scope": "node"}
    net = of_tables["net"] | {"port": "hsn0", "kind": "cxi"}
    body = frame(1.0, gpu=[gpu], host=[host], io=[io], net=[net])
    return body | {"quality": {"columns": ["source", "reason", "values"], "rows": [["dcgm", "no library", 3]]}}


def test_every_query_has_an_answer(tmp_path: Path) -> None:
    """A renamed metric, or a typing error, would be an empty panel that nobody misses until an incident."""
    figures = Figures(Kept(), "nid001")
    where = f"127.0.0.1:{free_port()}"
    stop = serve(figures, where, "secret")
    left = queries()
    assert len(left) > 15 and not any("$" in query for query in left.values())
    try:
        with scraping(where, tmp_path, "secret") as server:
            deadline = time.monotonic() + LIMIT_S
            while left:
                assert time.monotonic() < deadline, f"Prometheus has no answer to {left}"
                figures.put("observe.frame", "root", job=7, step="0", uid=1000, body=whole_frame(0.5))
                time.sleep(0.3)
                for name in [name for name, query in left.items() if _is_known(ask(server, query))]:
                    del left[name]
    finally:
        stop()


def _is_known(found: list[dict[str, Any]]) -> bool:
    return any(one["value"][1] != "NaN" for one in found)


def test_panels_lie_beside_each_other() -> None:
    """None is over another, and no two have the same number; labels that legends name are those that queries keep."""
    content = json.loads(DASHBOARD.read_text())
    cells = [
        (x, y)
        for panel in content["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    for panel in plots():
        for target in panel["targets"]:
            kept = set(re.split(r",\s*", re.findall(r"by \(([^)]*)\)", target["expr"])[0]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]
