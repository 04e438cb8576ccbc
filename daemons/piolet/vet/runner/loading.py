"""Classes of evals by their target: 'module:Class', or '/path/file.py:Class'.

It refuses what is no eval. It raises Inconclusive with the reason, since a node on which a class cannot be
imported has not been judged. It runs under Python 3.8.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from typing import Any

from piolet.api import USER, Eval, Inconclusive


def load(target: str, search: Iterable[str] = ()) -> type[Eval]:
    """Return the class `target`; `search` is looked into, too. Raises Inconclusive."""
    module_name, _, class_name = target.rpartition(":")
    add_path(search)
    module = module_of(module_name)
    found: Any = getattr(module, class_name, None)
    if found is None:
        raise Inconclusive(f"{module_name} has no class '{class_name}'", USER)
    if not isinstance(found, type) or not issubclass(found, Eval):
        raise Inconclusive(f"{module_name}.{class_name} is no eval: it does not derive from piolet.api.Eval", USER)
    return found


def add_path(directories: Iterable[str]) -> None:
    """Have modules looked for there: in front of what is installed, and after the standard library.

    A user's heapq.py is not for the imports of Python itself.
    """
    new = [directory for directory in directories if directory not in sys.path]
    installed = (place for place, path in enumerate(sys.path) if path.endswith("-packages"))
    at = next(installed, len(sys.path))
    sys.path[at:at] = new


def module_of(name: str) -> Any:
    """Return the module `name`, or the one in the file `name` when it ends in '.py'. Raises Inconclusive."""
    try:
        return _from_file(name) if name.endswith(".py") else importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Inconclusive(f"cannot import {name}: there is no module '{error.name}'", USER) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's file does when it is imported
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise Inconclusive(f"cannot import {name}: {what}", USER) from None


def _from_file(path: str) -> Any:
    name = "piolet_site_eval_" + os.path.basename(path)[:-3]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while a class is made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
