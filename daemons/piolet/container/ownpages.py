"""Gives a waiting worker its own copies of the memory that it is going to touch, before there is an order for it.

After a fork every page is shared until one of the two writes to it, and Python writes to all that it looks at, since it
counts references. The kernel then copies that page: some three hundred while a container is built, at 3 microseconds
each on a virtual machine. So a worker looks at its code, and reads an order that is none, while it waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType, FunctionType, ModuleType


def copy(modules: Iterable[ModuleType]) -> None:
    """Look at every function of these modules: their pages are this process's own then. Has no other effect."""
    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, FunctionType):
                _look(value.__code__)
            elif isinstance(value, type):
                for one in vars(value).values():
                    function = one.__func__ if isinstance(one, (classmethod, staticmethod)) else one
                    if isinstance(function, FunctionType):
                        _look(function.__code__)


def _look(code: CodeType) -> None:
    for _ in code.co_names:
        pass
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _look(constant)
