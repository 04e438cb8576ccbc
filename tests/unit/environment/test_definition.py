"""The canonical form of a definition, and what its reader refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import PioletError
from piolet.environment.definition import LIMIT_BYTES, Definition, Mount, from_json
from piolet.images.info import Image

DIGEST = "sha256:" + "0" * 64
FULL = Definition(
    request="./x.toml",
    files=("/a/x.toml",),
    image=Image("img", "site", DIGEST),
    workdir="/w",
    entrypoint=("/e",),
    writable=False,
    mounts=(Mount("/a", "/b", "bind", ("ro",)), Mount("", "/t", "tmpfs")),
    devices=("/dev/fuse",),
    set_env={"B": "é", "A": "1"},
    unset_env=("C",),
    annotations={"x.y": "z"},
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
PATH = TEXT.map(lambda text: "/" + text)
PLACE = TEXT.map(lambda text: "/d" + text.replace("..", "."))
DEFINITIONS = st.builds(
    Definition,
    request=TEXT,
    files=st.lists(PATH, max_size=2).map(tuple),
    image=st.one_of(
        st.none(),
        st.builds(Image, TEXT, st.just("site"), st.just(DIGEST)),
        st.builds(Image, TEXT, st.just("user"), st.none(), PATH),
    ),
    workdir=st.one_of(st.none(), PATH),
    entrypoint=st.lists(TEXT, max_size=2).map(tuple),
    writable=st.booleans(),
    remap_root=st.booleans(),
    mounts=st.lists(
        st.one_of(
            st.builds(Mount, PATH, PLACE, st.sampled_from(["bind", "sqsh"]), st.lists(TEXT, max_size=2).map(tuple)),
            st.builds(Mount, st.just(""), PLACE, st.just("tmpfs")),
        ),
        max_size=2,
    ).map(tuple),
    set_env=st.dictionaries(st.text("ABC", min_size=1), TEXT, max_size=3),
    unset_env=st.lists(TEXT, max_size=2).map(tuple),
    annotations=st.dictionaries(TEXT, TEXT, max_size=2),
)


@given(DEFINITIONS)
def test_round_trip(definition: Definition) -> None:
    data = definition.to_json()
    assert from_json(data) == definition
    assert from_json(data).to_json() == data


def test_the_same_definition_has_the_same_bytes_and_another_has_not() -> None:
    again = Definition(**{**vars(FULL), "set_env": {"A": "1", "B": "é"}})
    assert again.to_json() == FULL.to_json()
    assert Definition(**{**vars(FULL), "workdir": "/v"}).to_json() != FULL.to_json()


def test_an_earlier_release_is_told_of_root_only_where_it_is_wanted() -> None:
    """It refuses what it does not know."""
    assert b"remap_root" not in FULL.to_json()
    assert b'"remap_root":true' in Definition(**{**vars(FULL), "remap_root": True}).to_json()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("mounts"), "the definition lacks 'mounts'"),
        (lambda d: d["image"].pop("store"), "the definition lacks 'store'"),
        (lambda d: d["mounts"][0].pop("flags"), "the definition lacks 'flags'"),
        (lambda d: d.update(more=1), "the definition has the unknown key 'more'"),
        (lambda d: d.update(version=2), "the definition is not of version 1"),
        (lambda d: d.pop("version"), "the definition is not of version 1"),
        (lambda d: d.update(request=1), "a value that should be a string"),
        (lambda d: d.update(request="a\0"), "a value that should be a string"),
        (lambda d: d.update(writable=1), "a value that should be true or false"),
        (lambda d: d.update(remap_root="yes"), "a value that should be true or false"),
        (lambda d: d.update(files="x"), "a value that should be an array"),
        (lambda d: d.update(devices=[1]), "a value that should be a string"),
        (lambda d: d.update(annotations=[]), "a value that should be an object"),
        (lambda d: d.update(mounts=[1]), "a value that should be an object"),
        (lambda d: d.update(workdir="w"), "the relative path 'w'"),
        (lambda d: d["mounts"][0].update(source="a"), "the relative path 'a'"),
        (lambda d: d["mounts"][0].update(destination="b"), "the relative path 'b'"),
        (lambda d: d["mounts"][0].update(destination="/."), "a mount at '/.'"),
        (lambda d: d["mounts"][0].update(destination="/a/../../b"), "a mount at '/a/../../b'"),
        (lambda d: d["mounts"][0].update(kind="nfs"), "a mount of an unknown kind"),
        (lambda d: d["set_env"].update({"": "x"}), "a variable with an impossible name"),
        (lambda d: d["set_env"].update({"A=B": "x"}), "a variable with an impossible name"),
        (lambda d: d["set_env"].update({"A": "x\0"}), "a value that should be a string"),
        (lambda d: d["image"].update(store="moon"), "names a store that does not exist"),
        (lambda d: d["image"].update(digest="sha256:0"), "a malformed image digest"),
        (lambda d: d["image"].update(digest="sha256:" + "Z" * 64), "a malformed image digest"),
        (lambda d: d["image"].update(digest=None), "an image without a place"),
        (lambda d: d["image"].update(store="user"), "an image without a place"),
        (lambda d: d["image"].update(path="p"), "the relative path 'p'"),
    ],
)
def test_what_the_reader_refuses(change: Change, message: str) -> None:
    value = json.loads(FULL.to_json())
    change(value)
    with pytest.raises(PioletError) as caught:
        from_json(json.dumps(value).encode())
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the definition is not JSON"),
        (b"\xff", "the definition is not JSON"),
        (b"[" * 90_000, "the definition is not JSON"),
        (b"[]", "the definition is not a JSON object"),
        (b" " * (LIMIT_BYTES + 1), f"is {LIMIT_BYTES + 1} bytes long, more than the limit of {LIMIT_BYTES}"),
    ],
)
def test_what_is_no_definition(data: bytes, message: str) -> None:
    with pytest.raises(PioletError) as caught:
        from_json(data)
    assert message in caught.value.message


@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda v: st.lists(v) | st.dictionaries(TEXT, v)))
def test_any_value_in_any_place_is_read_or_refused(value: Any) -> None:
    whole = json.loads(FULL.to_json())
    for key in whole:
        try:
            from_json(json.dumps({**whole, key: value}).encode())
        except PioletError:
            continue
