"""Which device file is behind the number that Slurm gives a GPU, as gres.conf says.

Slurm counts a node's GPUs from 0 in the order in which gres.conf names their files. With AutoDetect that is the order
of the PCI bus, which is NVML's. The number in a file's name is the driver's minor number, and need be neither
(PrincetonUniversity/jobstats issue 34; Slurm, gres_common.c: "this isn't always the same order as the device file
names"). Refuses nothing: what it cannot tell it leaves as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence

from piolet.base import hostlist
from piolet.base.errors import PioletError

# The administrator's, and where a slurmd without files of its own keeps what slurmctld sends.
PLACES = ("/etc/slurm/gres.conf", "/run/slurm/conf/gres.conf")
_MAX = 1 << 20


def by_file(names: Sequence[str], node: str, variables: Mapping[str, str]) -> list[str]:
    """Return the names of GPUs with each number of Slurm's as its device file, /dev/nvidiaN with the minor number N.

    `variables` may have SLURM_CONF. Where gres.conf is not there, names no files for this node, or lets Slurm look for
    itself, or where a file is no device, numbers stay numbers.
    """
    conf = variables.get("SLURM_CONF", "")
    places = (os.path.join(os.path.dirname(conf), "gres.conf"),) if conf else PLACES
    files = _files(_read(places), node) if any(map(str.isdecimal, names)) else []
    devices = {str(number): device for number, path in enumerate(files) if (device := _device(path))}
    return [devices.get(name, name) for name in names]


def _read(places: Sequence[str]) -> str:
    for place in places:
        try:
            with open(place, encoding="utf-8", errors="replace") as file:
                return file.read(_MAX)
        except OSError:
            continue
    return ""


def _device(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return f"/dev/nvidia{os.minor(info.st_rdev)}" if stat.S_ISCHR(info.st_mode) else ""


def _files(text: str, node: str) -> list[str]:
    """Return the files of the node's GPUs in Slurm's order; none where gres.conf alone does not say."""
    files: list[str] = []
    for words in _lines(text):
        if "include" in words:
            return []
        try:
            if "nodename" in words and node not in hostlist.expand(words["nodename"]):
                continue
            if words.get("autodetect", "off").lower() != "off":
                return []
            if words.get("name", "").lower() == "gpu" and "file" in words:
                files += hostlist.expand(words["file"])
        except PioletError:
            return []
    return files


def _lines(text: str) -> Iterator[dict[str, str]]:
    """Yield each line's words as keys, in small letters, and values."""
    for line in text.replace("\\\n", " ").splitlines():
        pairs = (word.partition("=") for word in line.partition("#")[0].split())
        words = {key.lower(): value for key, _, value in pairs}
        if words:
            yield words
