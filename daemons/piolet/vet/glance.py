"""What a user's own class says of itself, read from its file without executing any of it.

The login node imports nobody's classes; but what is plain to see there need not cost an allocation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from piolet.base.files import NotRegularError, read_small

_SIZE_MAX = 1 << 20


@dataclass(frozen=True)
class ClassGlance:
    """What is plain to see.

    better   the 'better' of the class; '': it has none, None: it cannot be told
    scope    its 'scope', likewise
    broken   why no import can give the class, with the file and the line; '': nothing speaks against it
    """

    better: str | None = None
    broken: str = ""
    scope: str | None = None


def look(dotted: str, search: Iterable[str]) -> ClassGlance:
    """Return what is to be seen of the class `dotted`, of a file in `search`."""
    *module, name = dotted.split(".")
    for directory in search:
        path = Path(directory, *module)
        if path.with_suffix(".py").exists():
            return ClassGlance() if path.is_dir() else _look(path.with_suffix(".py"), name)
        if Path(directory, module[0]).is_dir() or Path(directory, module[0] + ".py").exists():
            return ClassGlance()
    return ClassGlance()


def _look(path: Path, name: str) -> ClassGlance:
    try:
        # It may lie in a directory of others: no pipe in its place holds this up.
        text, _ = read_small(str(path), _SIZE_MAX)
        if len(text) > _SIZE_MAX:
            return ClassGlance()
        tree = ast.parse(text)
    except SyntaxError as error:
        return ClassGlance(broken=f"{path}, line {error.lineno or 1}: {error.msg}")
    except ValueError as error:  # a zero byte
        return ClassGlance(broken=f"{path}: {error}")
    except (OSError, NotRegularError, RecursionError, MemoryError):
        return ClassGlance()
    if not _may_have(tree, name):
        return ClassGlance(broken=f"{path} has no class '{name}'")
    return ClassGlance(_said(tree, name, "better"), scope=_said(tree, name, "scope"))


def _may_have(tree: ast.Module, name: str) -> bool:
    """Return whether the module may have something called `name`: it binds it, or names that are not to be seen."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=bound) | ast.FunctionDef(name=bound) | ast.Name(id=bound):
                if bound in (name, "__getattr__", "exec", "globals", "setattr", "vars", "sys"):
                    return True
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                if {one.asname or one.name.partition(".")[0] for one in names} & {name, "*"}:
                    return True
    return False


def _said(tree: ast.Module, name: str, attribute: str) -> str | None:
    """Return the text that a class has as an attribute; '': it has none, None: it cannot be told."""
    classes = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name]
    if len(classes) != 1:
        return None
    for line in classes[0].body:
        targets = getattr(line, "targets", None) or [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            value = getattr(line, "value", None)
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    # Eval itself has none; any other base class may, and a decorator may add one.
    known = {
        f"{one.module}.{name.name}": name.asname or name.name
        for one in tree.body
        if isinstance(one, ast.ImportFrom)
        for name in one.names
    }
    eval_itself = {known.get("piolet.api.Eval"), f"{known.get('piolet.api')}.Eval", "piolet.api.Eval"}
    bases = [ast.unparse(base) for base in classes[0].bases]
    decorated = {getattr(getattr(one, "func", one), "id", "?") for one in classes[0].decorator_list}
    plain = not classes[0].keywords and len(bases) == 1 and bases[0] in eval_itself
    return "" if plain and decorated <= {"dataclass"} else None
