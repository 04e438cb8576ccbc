"""The C of the shims, compiled for the tests: the very sources that become the plugins."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def compile_module(directory: Path, *options: str) -> Path:
    """Compile the cffi module of the shims into `directory`; return its path."""
    command = [sys.executable, str(ROOT / "spank" / "build_shims.py"), "--module", str(directory), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return next(directory.glob("piolet_shims*.so"))


@pytest.fixture(scope="session")
def shims(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The shims' functions, as `lib` and `ffi` of a module."""
    path = compile_module(tmp_path_factory.mktemp("shims"))
    spec = importlib.util.spec_from_file_location("piolet_shims", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the same module, compiled with AddressSanitizer and UBSan."""
    directory = tmp_path_factory.mktemp("sanitized")
    compile_module(directory, "--sanitize")
    return directory
