"""The runner as one file, for `where: environment`: it runs under the Python of an image, from 3.8 on.

It holds the contract, the runner and the evals, and nothing that is not in the standard library. The same sources
always give the same bytes. It travels on standard input, so that an image needs nothing but a Python, and nothing is
bound into it: `python3 -I -c LOADER` reads a line with two lengths, the file, and one order,

    {"plan": {…}, "token": "…", "shared": "/dir/that/all/nodes/see"}

judges the plan's evals with `where: environment`, and writes the lines of a node to its standard output. What
then comes on standard input are the orders for meetings, if there is a token.

-I: neither the working directory, nor PYTHONPATH, nor the user's own packages have a say in what this is made of. The
evals' own imports find what PYTHONPATH names after all that the image has (inside.py), since images are made that way.
"""

from __future__ import annotations

import io
import os
import zipfile

import piolet

# Whole folders, and what the runner needs of others.
_FOLDERS = ("api", "vet/runner", "vet/evals")
_MODULES = ("__init__.py", "base/__init__.py", "base/errors.py", "base/hostlist.py", "vet/__init__.py")
# It is read by any Python that there is, so that one that is too old can say so.
LOADER = """\
import os, sys
def take(n):
    d = b""
    while len(d) < n:
        p = os.read(0, n - len(d))
        if not p: sys.exit("piolet: error: the order was cut short")
        d += p
    return d
if sys.version_info < (3, 8): sys.exit("piolet: error: the Python of the image is older than 3.8")
n = b""
while n[-1:] != b"\\n": n += take(1)
a, b = map(int, n.split())
import importlib.abc, importlib.util, io, zipfile
z = zipfile.ZipFile(io.BytesIO(take(a)))
m = {f[:-3].replace("/__init__", "").replace("/", "."): f for f in z.namelist()}
class Bundled(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in m else None
    def is_package(self, name): return m[name].endswith("__init__.py")
    def get_source(self, name): return z.read(m[name]).decode()
sys.meta_path.insert(0, Bundled())
from piolet.vet.runner.inside import main
sys.exit(main(take(b)))
"""


def build() -> bytes:
    """Return the file."""
    base = os.path.dirname(os.path.abspath(piolet.__file__))
    names = list(_MODULES)
    for folder in _FOLDERS:
        names += sorted(f"{folder}/{one}" for one in os.listdir(os.path.join(base, folder)) if one.endswith(".py"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with open(os.path.join(base, name), encoding="utf-8") as file:
                _add(archive, f"piolet/{name}", file.read())
    return content.getvalue()


def message(order: bytes) -> bytes:
    """Return what LOADER reads for `order`, which is one JSON object."""
    file = build()
    return b"%d %d\n" % (len(file), len(order)) + file + order


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # Without a date of its own: a changed byte has to mean a changed source.
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
