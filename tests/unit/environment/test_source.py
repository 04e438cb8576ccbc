"""Reading and parsing a definition file, and the places of what is in it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import EnvironmentFileError
from piolet.base.positions import scan
from piolet.environment import source


def error_of(text: str) -> EnvironmentFileError:
    with pytest.raises(EnvironmentFileError) as caught:
        source.parse("/f.toml", text)
    return caught.value


def place(text: str, *path: str | int, key: bool = False) -> tuple[int, int, str]:
    at = source.parse("/f.toml", text).locate(path, key=key)
    return at.line, at.column, at.text[at.column - 1 : at.column - 1 + at.width]


def test_the_place_of_a_value_and_of_its_key() -> None:
    text = 'a = 1\n  image  =   "x y"  # c\n'
    assert place(text, "image") == (2, 14, '"x y"')
    assert place(text, "image", key=True) == (2, 3, "image")


def test_the_place_of_array_elements_over_several_lines() -> None:
    text = 'mounts = [ # first\n  "/a", \'/b:#]\',\n\n  """/c""",\n]\nx = [[1, 2], [3]]\n'
    assert place(text, "mounts", 1) == (2, 9, "'/b:#]'")
    assert place(text, "mounts", 2) == (4, 3, '"""/c"""')
    assert place(text, "x", 0, 1) == (6, 10, "2")


def test_the_place_of_dotted_quoted_and_inline_keys() -> None:
    text = '[annotations]\ncom.hooks."s\\u0073h".on = "y"\nt = { a = 1, "b" = {c=[2]} }\n'
    assert place(text, "annotations", "com", "hooks", "ssh", "on") == (2, 27, '"y"')
    assert place(text, "annotations", "com", "hooks", "ssh", key=True) == (2, 11, '"s\\u0073h"')
    assert place(text, "annotations", "t", "b", "c", 0) == (3, 24, "2")


def test_the_place_of_tables_and_of_tables_in_arrays() -> None:
    text = "[[a]]\nx = 1\n[[a]]\n[a.b]\nx = 2\n"
    assert place(text, "a", 0, "x") == (2, 5, "1")
    assert place(text, "a", 1, "b", "x") == (5, 5, "2")
    assert place(text, "a", 1, "b") == (4, 1, "[a.b]")


def test_what_has_no_place_is_where_its_parent_is() -> None:
    assert place('a = "x"\n', "a", 3, "z") == (1, 5, '"x"')
    assert place('a = "x"\n', "nothing") == (1, 1, "a")


def test_a_fragment_within_a_value() -> None:
    parsed = source.parse("/f", 'a = "1"\nb = "${A}/${B}"\n')
    at = parsed.locate(("b",), fragment="${B}")
    assert (at.line, at.column, at.width) == (2, 11, 4)
    assert parsed.locate(("b",), fragment="nowhere").column == 5


def test_line_ends_of_windows_and_a_byte_order_mark() -> None:
    text = '\ufeffa = "1"\r\nb = """x\r\ny"""\r\nc = 3\r\n'
    parsed = source.parse("/f", text)
    assert parsed.data == {"a": "1", "b": "x\ny", "c": 3}
    assert place(text, "c") == (4, 5, "3")
    assert place(text, "a", key=True) == (1, 1, "a")


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("a = \n", 1, 5, "this is not valid TOML: Invalid value", None),
        ("image = ubuntu\n", 1, 9, "this is not valid TOML: Invalid value", 'text stands in quotes: "…"'),
        ('image = "a\n', 1, 11, "this is not valid TOML: Illegal character '\\n'", "no quote at its end"),
        ("[env]\nAÜ = '1'\n", 2, 2, "this is not valid TOML: Expected '='", "a name with 'Ü' in it"),
        ("a = 1\nb = /x\n", 2, 5, "this is not valid TOML: Invalid value", 'text stands in quotes: "…"'),
        ("[env]\nA = '1',\n", 2, 8, "this is not valid TOML: Expected newline or end of document", "without commas"),
        ("a = [1,\n2", 2, 2, "this is not valid TOML: Unclosed array", None),
        ("a = 1\na = 2\n", 2, 1, "'a' is there twice, first in line 1", "leave one"),
        ("[env]\n[x]\n[env]\n", 3, 2, "'env' is there twice, first in line 1", "leave one"),
        ("x = 2020-02-30\na = 1\na = 2\n", 1, 5, "this is not valid TOML: Invalid date or datetime", None),
        ("a.b = 1\na = 2\n", 2, 6, "this is not valid TOML: Cannot overwrite a value", None),
        ('a = "\0"\n', 1, 6, "this is not valid TOML: Illegal character", None),
        ("é = 1\n", 1, 1, "this is not valid TOML: Invalid statement", "a name with 'é' in it stands in quotes"),
    ],
)
def test_a_syntax_error_has_its_place(text: str, line: int, column: int, message: str, hint: str | None) -> None:
    error = error_of(text)
    assert error.location is not None
    assert message in error.message
    assert (error.location.line, error.location.column) == (line, column)
    assert (hint in (error.hint or "")) if hint else error.hint is None
    assert error.render().startswith(f"/f.toml:{line}:{column}: ")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "{x=" * 100 + "1" + "}" * 100, ".".join(["a"] * 400_000) + "=1"]
)
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    error = error_of(text)
    assert error.message == "tables or arrays are nested more than 32 deep"
    assert error.location is not None


def test_control_characters_of_a_line_do_not_reach_the_terminal() -> None:
    error = error_of('a = "\x1b]0;title\x07\n')
    assert "\x1b" not in error.render()
    assert "\x07" not in error.render()


def test_a_line_of_a_megabyte_is_cut() -> None:
    for text in ("a = x" + "x" * 1_000_000, "a = '" + "x" * 1_000_000, "a = [" + "1," * 400_000 + "?"):
        error = error_of(text)
        assert error.location is not None
        line, caret = error.render().splitlines()[1:3]
        assert len(line) <= 162
        assert len(caret) <= 162
        at = caret.index("^")
        assert (line + " ")[at] == (text + " ")[error.location.column - 1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.toml"


def refusal(path: Path) -> str:
    with pytest.raises(EnvironmentFileError) as caught:
        source.read(str(path))
    return caught.value.message


def test_read_gives_the_stamp_of_the_file(file: Path) -> None:
    file.write_text("a = 1\n")
    parsed = source.read(str(file))
    assert parsed.data == {"a": 1}
    assert parsed.stamp is not None
    assert parsed.stamp.inode == file.stat().st_ino
    assert parsed.stamp.size == 6
    assert parsed.directory == str(file.parent)


def test_read_refuses_a_directory_a_fifo_and_a_device(file: Path) -> None:
    assert refusal(file.parent) == f"{file.parent} is not a regular file"
    os.mkfifo(file)
    assert refusal(file) == f"{file} is not a regular file"
    assert refusal(Path("/dev/zero")) == "/dev/zero is not a regular file"


def test_read_refuses_what_is_absent(file: Path) -> None:
    assert refusal(file) == f"cannot read {file}: No such file or directory"


def test_read_refuses_what_is_too_long(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(100 << 20)  # 100 MB of [env] would be as long
    assert refusal(file) == f"{file} is {100 << 20} bytes long, more than the limit of {1 << 20} bytes"


def test_read_takes_what_is_just_short_enough(file: Path) -> None:
    file.write_text("#" * (1 << 20))
    assert source.read(str(file)).data == {}


def test_read_refuses_what_is_not_utf8(file: Path) -> None:
    file.write_bytes(b"a = 1\nb = '\xff'\n")
    assert refusal(file) == f"{file} is not UTF-8: byte 11 in line 2 is 0xff"


NAMES = st.text("abc", min_size=1, max_size=2)
SCALARS = st.one_of(
    st.integers(-999, 999),
    st.booleans(),
    st.just(tomllib.loads("d = 1979-05-27T07:32:00Z")["d"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


def to_toml(value: Any, filler: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(c if c.isalnum() or c in " #[]{}=,'." else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"' if len(value) % 2 else f'"""{escaped}"""'
    if isinstance(value, list):
        return "[" + filler + ("," + filler).join(to_toml(item, filler) for item in value) + filler + "]"
    if isinstance(value, dict):
        return "{" + " , ".join(f'"{key}" = {to_toml(item, filler)}' for key, item in value.items()) + "}"
    return str(value)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [(path, value)]
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))]


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from(["", "\n", " # ] }\n\t"]))
def test_every_value_is_where_the_scanner_says(data: dict[str, Any], filler: str) -> None:
    text = "".join(f"{key} = {to_toml(value, filler)} # c\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    found = scan(text)
    for path, value in leaves(data):
        start, end = found.values[path]
        assert tomllib.loads("v = " + text[start:end])["v"] == value
        key = found.keys.get(path)
        if key is not None:
            assert tomllib.loads(text[slice(*key)] + " = 0") == {path[-1]: 0}


@given(st.text(st.sampled_from("ab=[]{}\"'\n.,# 1\\"), max_size=40))
def test_any_text_is_parsed_or_refused_with_a_place(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assert error_of(text).location is not None
    else:
        assert source.parse("/f", text).data == expected


@pytest.mark.parametrize("value", ["True", "False", "TRUE"])
def test_true_and_false_are_small(value: str) -> None:
    assert error_of(f"writable = {value}\n").hint == "true and false are written small"


@pytest.mark.parametrize(
    ("name", "text", "what", "hint"),
    [
        ("p.yaml", "name: quick\nevals:\n  - type: gpu\n", "YAML", "a protocol for vetting is given by --vet"),
        ("p", "# a protocol\nevals:\n  - type: gpu\n", "YAML", "--vet"),
        ("p", "---\na: b\n", "YAML", "--vet"),
        ("p.toml", '{"image": "x"}\n', "JSON", "a definition begins like image"),
        ("job.sh", "#!/bin/bash\n#SBATCH -N1\nsrun x\n", "a script", "the script stands behind the options"),
    ],
)
def test_a_file_of_another_language(name: str, text: str, what: str, hint: str) -> None:
    with pytest.raises(EnvironmentFileError) as caught:
        source.parse(f"/{name}", text)
    assert caught.value.message == f"this is {what}, and a definition file is TOML"
    assert hint in (caught.value.hint or "")
    assert caught.value.location is not None


@pytest.mark.parametrize(
    ("magic", "what"),
    [(b"hsqs" + bytes(200), "a SquashFS image"), (b"#!/usr/bin/env run-singularity\n\0SIF", "an image of apptainer's")],
)
def test_an_image_is_no_definition_file(tmp_path: Path, magic: bytes, what: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(magic)
    with pytest.raises(EnvironmentFileError) as caught:
        source.read(str(path))
    assert caught.value.message == f"{path} is {what}, and no definition file"
    assert caught.value.hint == f'write a definition file that names the image: image = "{path}"'
