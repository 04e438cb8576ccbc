"""The lines and the first heat map as pictures in the page, for who has no script: mail programs, portals, print."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import numpy as np

from piolet.score.report import series
from piolet.score.report.content import LEVELS
from piolet.score.report.shell import escaped

POINTS, _WIDE, _HIGH = 150, 600, 60


def lines(panels: list[dict[str, Any]]) -> str:
    """Return a small picture of each panel's mean."""
    return "".join(_line(panel) for panel in panels)


def _line(panel: dict[str, Any]) -> str:
    values = series.pooled(np.array(panel["mean"], float), columns=POINTS)
    if np.isnan(values).all():
        return ""
    top, step = panel["top"], _WIDE / len(values)
    across = ((np.arange(len(values)) + 0.5) * step).round().astype(int).tolist()
    down = (_HIGH - np.minimum(1.0, values / top) * (_HIGH - 2)).round(1).tolist()
    pieces: list[list[str]] = [[]]
    for x, y in zip(across, down, strict=True):
        if math.isnan(y):
            pieces.append([])
        else:
            pieces[-1].append(f"{x},{y}")
    drawn = "".join(f'<polyline points="{" ".join(piece)}"/>' for piece in pieces if piece)
    least, most = (f"{bound:.3g}" for bound in (np.nanmin(values), np.nanmax(values)))
    said = escaped(f"{panel['title']}: {least} to {most}")
    shown = f'viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio=none fill=none stroke=currentColor'
    return f'<figcaption>{said}</figcaption><svg {shown} role=img aria-label="{said}">{drawn}</svg>'


def heat(plain: dict[str, Any]) -> str:
    """Return the picture of a heat map's worst values, by row and time."""
    cells = np.frombuffer(base64.b64decode(plain.get("worst") or plain["mean"]), np.uint8)
    cells = cells.reshape(-1, plain["columns"])
    said = escaped(
        f"{plain['label']}, {plain['names'][0]} to {plain['names'][-1]}, from 0 to {plain['top']:.3g} {plain['unit']}"
    )
    picture = base64.b64encode(_png(cells)).decode()
    return f'<figcaption>{said}</figcaption><img alt="{said}" src="data:image/png;base64,{picture}">'


def _png(cells: np.ndarray[Any, Any]) -> bytes:
    """Return levels of a heat map as PNG (RFC 2083) with a palette; 255 is transparent."""
    at = [share / 100 * LEVELS for share, _ in series.HEAT_KEY]
    known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in series.HEAT_KEY], float)
    palette = np.stack([np.interp(np.arange(256), at, part) for part in known.T], axis=1)
    rows = np.concatenate([np.zeros((len(cells), 1), np.uint8), cells], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", cells.shape[1], len(cells), 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", head), (b"PLTE", palette.round().astype(np.uint8).tobytes()), (b"tRNS", bytes([255] * 255 + [0])),
        (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""),
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
