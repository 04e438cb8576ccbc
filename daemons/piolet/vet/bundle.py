"""The runner as one file, for `where: environment`: it runs under the Python of an image, from 3.8 on.

It holds the contract, the runner and the evals, and nothing that is not in the standard library. The same sources
always give the same bytes. Inside, `python3 runner.pyz` reads one JSON object from its standard input,

    {"plan": {…}, "context": {"node": …, "nodes": […], "uid": …, "gpus": […] or null, "facts": {…}}}

judges the plan's evals with `where: environment`, and writes the lines of a node to its standard output.
"""

from __future__ import annotations

import io
import os
import zipfile

import piolet

_MODULES = (
    "__init__.py", "errors.py", "api.py", "vet/__init__.py", "vet/failures.py", "vet/plan.py", "vet/records.py",
    "vet/loading.py", "vet/child.py", "vet/runner.py", "vet/inside.py",
)  # fmt: skip
_START = b"#!/usr/bin/env python3\n"
_MAIN = "import sys\n\nfrom piolet.vet.inside import main\n\nsys.exit(main())\n"


def build() -> bytes:
    """Return the file."""
    base = os.path.dirname(os.path.abspath(piolet.__file__))
    evals = sorted(name for name in os.listdir(os.path.join(base, "vet/evals")) if name.endswith(".py"))
    content = io.BytesIO()
    content.write(_START)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*_MODULES, *(f"vet/evals/{one}" for one in evals)):
            with open(os.path.join(base, name), encoding="utf-8") as file:
                _add(archive, f"piolet/{name}", file.read())
        _add(archive, "__main__.py", _MAIN)
    return content.getvalue()


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # Without a date of its own: a changed byte has to mean a changed source.
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
