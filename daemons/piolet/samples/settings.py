"""The section `[score]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute, absolute_or_empty, setting

WEIGHTS = ("compute", "memory", "communication")


def _interval(text: str) -> None:
    from piolet.samples.request import period_of  # who sets nothing loads nothing

    try:
        period_of(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no interval from 100ms to 1h", "write for example: 100ms, 1s, 5min") from None


def weights_of(text: str) -> dict[str, float]:
    """Return the weights in "compute=2,memory=1,communication=0.5"; what is left out has 1.

    Raises ConfigError: it is no such list, or all weights are 0.
    """
    weights = dict.fromkeys(WEIGHTS, 1.0)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if name.strip() not in weights or not 0 <= weight <= 1000:
            raise ConfigError(f"'{part}' is no weight", f"write for example: {', '.join(f'{w}=1' for w in WEIGHTS)}")
        weights[name.strip()] = weight
    if not any(weights.values()):
        raise ConfigError("all weights are 0", "one at least counts")
    return weights


def _weights(text: str) -> None:
    weights_of(text)


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:9417" or "[::1]:9417".

    Raises ConfigError: it is none, or not of the loopback interface.
    """
    import ipaddress  # who sets nothing loads nothing

    host, _, port = text.rpartition(":")
    try:
        number = int(port)
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        number, loopback = 0, False
    if not loopback or not 0 < number < 65536:
        raise ConfigError(
            f"'{text}' is not an address and a port of the loopback interface", "write for example: 127.0.0.1:9417"
        )
    return host.strip("[]"), number


def _address_or_empty(text: str) -> None:
    if text:
        address_of(text)


@dataclass(frozen=True)
class ScoreConfig:
    """`[score]`: counters and the score."""

    interval: str = setting("100ms", "Between two samples, where --score does not say: 100ms to 1h.", _interval)
    collector: Literal["auto", "gpm", "dcgm", "nvml", "host"] = setting(
        "auto", "The source of GPU counters: auto, gpm, dcgm, nvml or host."
    )
    out: str = setting(
        "",
        "Where data sets go: %j is the job, %s the step, %r -r1 after a requeue; relative to the step's directory. "
        "Empty: below [results] directory.",
    )
    calibration: str = setting(
        "", "Peaks of the site's GPUs, a file of `piolet score calibrate`; empty: the data sheets'.", absolute_or_empty
    )
    weights: str = setting(
        "compute=1,memory=1,communication=1",
        "How much each counts in the report's aggregated picture; the saturation is the same whatever they are.",
        _weights,
    )
    end_wait_s: int = setting(
        2,
        "srun stays so many seconds at most for the screen after a step's end; later, `piolet score show` makes it.",
    )
    node_mb: int = setting(
        64,
        "A step's samples take so many MB on each node at most: those of longer steps are kept as means over longer "
        "times. Figures are made of all that came.",
        least=1,
    )
    key: str = setting(
        "/etc/piolet/score-key", "The site's SSH key that signs certificates; only who may sign can read it.", absolute
    )
    signers: str = setting(
        "/etc/piolet/score-signers",
        "Whose signatures of certificates count: an allowed_signers file of SSH.",
        absolute,
    )
    prometheus: str = setting(
        "",
        "Where pioletd serves the metrics of running steps, for example 127.0.0.1:9417; empty: nowhere.",
        _address_or_empty,
    )
