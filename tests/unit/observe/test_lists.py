"""Whom a site's lists include, and how a section of settings is checked."""

from __future__ import annotations

import pytest
from piolet.base.errors import ConfigError
from piolet.observe.lists import is_in
from piolet.observe.settings import ObserveConfig, is_on
from piolet.site.config import from_dict


@pytest.mark.parametrize(
    ("text", "names", "inside"),
    [
        ("", ("a",), True),
        ("a, b", ("b",), True),
        ("a", ("b",), False),
        ("-a", ("b",), True),
        ("-a", ("1000", "a"), False),
        ("a,-a", ("a",), False),
    ],
)
def test_who_is_in_a_list(text: str, names: tuple[str, ...], inside: bool) -> None:
    assert is_in(text, *names) is inside


def test_auto_records_where_somebody_reads() -> None:
    assert not is_on("auto", "") and is_on("auto", "http://head:6828")
    assert is_on("on", "") and not is_on("off", "http://head:6828")
    assert ObserveConfig().steps == "auto"


def test_a_source_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no source 'lustr'") as raised:
        from_dict({"observe": {"without": "lustr"}}, "piolet.toml")
    assert "lustre" in str(raised.value.hint)
    assert from_dict({"observe": {"without": "gpu, nfs"}}, "piolet.toml").observe.without == "gpu, nfs"
