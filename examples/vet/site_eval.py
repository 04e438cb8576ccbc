"""A site's own eval: put this file into a directory that `[vet] evals` in piolet.toml names."""

from __future__ import annotations

import os
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, at_most, parameter


@dataclass(frozen=True)
class LoadAverage(Eval):
    name = "load_average"
    text = "the load of the last minute"
    how = "getloadavg"
    source = "the kernel"
    better = "lower"

    max_load: float = parameter(4.0, text="the highest load", least=0)

    def check(self, context: Context) -> Verdict:
        return at_most("load", os.getloadavg()[0], self.max_load, "")
