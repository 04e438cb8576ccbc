"""Whatever fails between a node's sampler and the store: what is missing has a reason, and is no more than that."""

from __future__ import annotations

from tests.scale import faults


def test_every_gap_has_a_reason_and_coverage_is_true() -> None:
    said = faults.measure(20.0, faults.NODES[:5])
    # Of 20 s a sample is two and a half points; `python -m tests.scale.faults` has 60 s, and one point.
    assert said["worst"] <= 0.025, said
    assert said["unexplained"] == [] and said["twice"] == 0, said
    assert said["kills"]["service"] >= 1 and said["kills"]["forwarder"] >= 2, said
    text = " ".join(said["reasons"])
    for reason in ("restarted", "ahead", "behind", "the disk", "the bound of each user"):
        assert reason in text, said
