"""The compiled module: cffi has no types for it."""

from typing import Any

ffi: Any
lib: Any
