"""Of which part of a node a verdict is: the GPU or the port that its reason names, if that is one alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GPU = re.compile(r"\bGPU (\d+)\b")
_PORT = re.compile(r"\b([A-Za-z][\w.-]{0,60}) port (\d+)\b")


def of(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the `subject` and, of a GPU, the `serial`, of a record as a node writes it; nothing where it is the node.

    The evals call GPUs by their numbers, which are nobody's name; their details say which these are.
    """
    reason, details = said.get("reason"), said.get("details")
    if not isinstance(reason, str) or not isinstance(details, Mapping):
        return {}
    ports, numbers = set(_PORT.findall(reason)), set(_GPU.findall(reason))
    if len(ports) == 1 and not numbers:
        ((name, number),) = ports
        return {"subject": f"port:{name}/{number}"}
    gpus = details.get("gpus")
    if ports or len(numbers) != 1 or not isinstance(gpus, (list, tuple)):
        return {}
    (number,) = numbers
    for gpu in gpus:
        if isinstance(gpu, Mapping) and str(gpu.get("index")) == number and isinstance(gpu.get("uuid"), str):
            serial = gpu.get("serial")
            return {"subject": f"gpu:{gpu['uuid']}", **({"serial": serial} if isinstance(serial, str) else {})}
    return {}
