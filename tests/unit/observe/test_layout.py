"""The layout is what samples of --score have, and more."""

from __future__ import annotations

import pytest
from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.observe import layout
from piolet.samples import dataset
from piolet.samples.journals import NodeFacts

FACTS = NodeFacts({"node": "node1", "devices": []})


@pytest.mark.parametrize("host", [False, True])
def test_samples_of_a_score_fit(host: bool) -> None:
    table = layout.schema("host" if host else "gpu")
    for field in dataset.schema(HOST_QUANTITIES if host else GPU_QUANTITIES, FACTS, host):
        mine = table.field(field.name)
        assert (mine.type, mine.metadata) == (field.type, field.metadata), field.name


def test_every_column_says_what_it_is() -> None:
    for name in layout.TABLES:
        for field in layout.schema(name):
            assert field.metadata[b"text"], f"{name}.{field.name}"
