"""What detectors share: which GPUs did something, which of it was work, and stretches of time. Arrays in, arrays out.

In a collective a GPU waits by a kernel that polls: it is active all the time, on a few multiprocessors, and draws
little (NCCL's kernels use up to 32 of an H100's 132: NCCL's documentation, NCCL_MAX_CTAS, 2026-11). So being active is
not working; work is measured by SM activity, or where there are no profiling counters by power.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from piolet.api import CannotTell, Limit, Observed

Array = np.ndarray[Any, np.dtype[Any]]

ACTIVE = 0.05  # of the time: below it a GPU does nothing
COVERED = 0.5  # of the bins: with less nothing is said
MADE = "2026-11-29"


def guess(value: float, unit: str, why: str) -> Limit:
    """Return a threshold that nobody has published; what it leads to is measured (docs/benchmarks.md)."""
    return Limit(value, unit, f"a guess: {why}", MADE)


def activity(step: Observed, least: int = 1) -> Array:
    """Return the share of time in which each GPU was active, (gpus, bins). Raises CannotTell."""
    if len(step.gpus) < least:
        raise CannotTell(f"there are figures of {len(step.gpus)} GPUs, and it takes {least}")
    engine = step.gpu("engine")
    values = np.where(np.isnan(engine), step.gpu("utilisation"), engine)
    if covered(values) < COVERED:
        raise CannotTell("in more than half of the time nobody measured what the GPUs did")
    return values


def effort(step: Observed) -> Array:
    """Return how much of what it does at most each GPU worked, 0 to about 1, (gpus, bins). Raises CannotTell."""
    sm = step.gpu("sm")
    if covered(sm) >= COVERED:
        best = np.nan_to_num(quantile(sm, 0.95))
        return np.asarray(sm / np.maximum(best, 0.02)[:, None])
    power = step.gpu("power")
    if covered(power) < COVERED:
        raise CannotTell("there are neither profiling counters nor power, which tell work from waiting")
    best = quantile(power, 0.95)
    limits = told(step, "power_limit")
    floor = np.fmin(quantile(power, 0.01), 0.12 * np.where(np.isnan(limits), best, limits))
    least = np.fmax(0.1 * limits, 20.0)  # what a GPU that nobody uses wavers by is no work
    return np.asarray((power - floor[:, None]) / np.maximum(best - floor, least)[:, None])


def told(step: Observed, name: str) -> Array:
    """Return a fact of each GPU, NaN where it is not known, or no number above 0."""
    values = [gpu.facts.get(name) for gpu in step.gpus]
    return np.array([float(one) if isinstance(one, int | float) and 0 < one < np.inf else np.nan for one in values])


def covered(values: Array) -> float:
    """Return the share of bins that have a value."""
    return float(np.mean(~np.isnan(values))) if values.size else 0.0


def quantile(values: Array, share: float, axis: int = 1) -> Array:
    """Return a quantile of what there is, between neighbours by proportion; NaN where there is nothing."""
    if not values.shape[axis]:
        return np.full(values.sum(axis=axis).shape, np.nan)
    ordered = np.sort(values, axis=axis)  # NaN last: np.nanquantile goes row by row, and takes 20 times as long
    many = np.sum(~np.isnan(values), axis=axis, keepdims=True)
    at = share * np.maximum(many - 1, 0)
    low = np.floor(at).astype(np.int64)
    below = np.take_along_axis(ordered, low, axis)
    above = np.take_along_axis(ordered, np.minimum(low + 1, np.maximum(many - 1, 0)), axis)
    return np.asarray((below + (at - low) * (above - below)).squeeze(axis))


def mean(values: Array, where: Array | None = None, axis: int = 1) -> Array:
    """Return means of what there is (`where` it is asked for); NaN where there is nothing."""
    mask = ~np.isnan(values) if where is None else ~np.isnan(values) & where
    many = mask.sum(axis=axis)
    total = np.where(mask, values, 0).sum(axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(many > 0, total / many, np.nan))


def share(mask: Array) -> float:
    """Return the share of what is true, 0 of nothing."""
    return float(mask.mean()) if mask.size else 0.0


def stretches(mask: Array, bridge: int = 0) -> list[tuple[int, int]]:
    """Return first and end of each run of what is true; `bridge`: so many others in between do not end it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    found: list[tuple[int, int]] = []
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if found and first - found[-1][1] <= bridge:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found


def longest(mask: Array, bridge: int = 0) -> tuple[int, int]:
    """Return the longest stretch; (0, 0): there is none."""
    return max(stretches(mask, bridge), key=lambda one: one[1] - one[0], default=(0, 0))


def mostly(above: Array, known: Array, many: int) -> Array:
    """Return where more than half of what is known of the `many` bins around is true: a running median, counted.

    False where more than half of them are missing. `above` and `known` are masks, (rows, bins).
    """
    many = max(1, min(many, above.shape[-1]))
    half = many // 2

    def around(mask: Array) -> Array:
        padded = np.pad(mask.astype(np.int32), ((0, 0), (half + 1, many - 1 - half)))
        total = padded.cumsum(axis=1, dtype=np.int32)
        return np.asarray(total[:, many:] - total[:, :-many])

    there = around(known)
    return np.asarray((2 * around(above & known) > there) & (2 * there >= many - 1))


def short(name: str) -> str:
    """Return a name that a user chose for a sentence: not longer than there is room."""
    return name if len(name) <= 80 else f"{name[:79]}…"


def running(active: Array) -> Array:
    """Return the bins from the first in which any GPU was active to the last, as a mask."""
    any_active = np.nan_to_num(active).max(axis=0) > ACTIVE
    mask = np.zeros(active.shape[1], bool)
    if any_active.any():
        at = np.flatnonzero(any_active)
        mask[at[0] : at[-1] + 1] = True
    return mask


def minutes(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(value: float) -> str:
    """Return a share for people."""
    return f"{100 * value:.0f} %"


def called(step: Observed, row: int) -> str:
    """Return what a GPU is called in sentences."""
    gpu = step.gpus[row]
    return f"GPU {gpu.index} of {gpu.node}"


def moment(step: Observed, at: float) -> int | None:
    """Return a time in nanoseconds since 1970 of seconds since the start; None: of a mark without a time."""
    return step.start + int(at * 1e9) if np.isfinite(at) else None
