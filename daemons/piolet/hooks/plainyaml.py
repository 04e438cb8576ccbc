"""YAML as specifications of devices use it: tables, lists and texts, and nothing else.

Its own library's composer recurses in C and takes the process down with it where a text nests a hundred thousand deep;
events do not. Anchors and aliases (a small file can mean a huge one) and tags are refused.
"""

from __future__ import annotations

from typing import Any

import yaml

DEPTH_MAX = 32


def parse(data: bytes) -> Any:
    """Return what a text says: dictionaries, lists, texts, and None. Raises ValueError."""
    stack: list[Any] = []
    keys: list[str | None] = []
    result: Any = None
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("it has an anchor or an alias, which is not supported")
            if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                value = stack.pop()
                keys.pop()
            elif isinstance(event, yaml.ScalarEvent):
                plain = event.style is None
                value = None if plain and event.value in ("", "~", "null") else event.value
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                if len(stack) >= DEPTH_MAX:
                    raise ValueError(f"it nests more than {DEPTH_MAX} deep")
                stack.append([] if isinstance(event, yaml.SequenceStartEvent) else {})
                keys.append(None)
                continue
            else:
                continue
            if not stack:
                result = value
            elif isinstance(stack[-1], list):
                stack[-1].append(value)
            elif keys[-1] is None:
                if not isinstance(value, str):
                    raise ValueError("it has a key that is no text")
                keys[-1] = value
            else:
                stack[-1][keys[-1]], keys[-1] = value, None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from None
    return result
