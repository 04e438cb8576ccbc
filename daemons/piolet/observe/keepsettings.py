"""The section `[keep]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.config.schema import absolute, setting


@dataclass(frozen=True)
class KeepConfig:
    """`[keep]`: the data of steps on the central service's machine, and for how long they are kept (decision 138)."""

    steps: bool = setting(True, "Take the data that nodes record of steps; false: such data are refused.")
    directory: str = setting(
        "/var/lib/piolet-central/steps", "Where they are; of the central service's account alone.", absolute
    )
    findings: bool = setting(True, "Run the detectors when a step has ended (docs/detectors.md).")
    detectors: str = setting(
        "/etc/piolet/detectors.d",
        "The site's own detectors: one file NAME.py each, root's and nobody else's to write.",
        absolute,
    )
    whole_days: int = setting(
        30, "Days after a step's end until its samples are kept as means over thinned_s.", least=1
    )
    thinned_s: int = setting(30, "Seconds that such a mean is over; 0: samples are kept as they are.")
    samples_days: int = setting(
        365, "Days after a step's end until its samples are removed; roll-up, events, marks and findings stay.", least=1
    )
    rollup_days: int = setting(730, "Days after a step's end until all of it is removed.", least=1)
    pack_min: int = setting(
        10, "Steps shorter than so many minutes are put together into one file a day and table, a week later; 0: none."
    )
    quota_gib: int = setting(
        0, "All data together; above it the oldest samples are thinned and removed before their time; 0: no quota."
    )
    free_mib: int = setting(1024, "With less free on the disk no data are taken; nodes keep theirs meanwhile.")
    settle_s: int = setting(
        90, "Seconds after a step's last node has ended until its tables are made: other nodes' records come later.",
        least=1,
    )  # fmt: skip
    silent_min: int = setting(
        30, "Minutes without a word of its nodes until a step counts as ended; what comes later is added.", least=1
    )
