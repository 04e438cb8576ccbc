"""Writes docs/job.schema.json, the schema of `piolet job --json`: `python -m tools.jobschema`."""

from __future__ import annotations

import json
from pathlib import Path

from piolet.observe.job import schema

PLACE = Path(__file__).resolve().parents[1] / "docs" / "job.schema.json"


def text() -> str:
    """Return what stands in it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), "utf-8")
