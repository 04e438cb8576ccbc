"""References: what they normalise to, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import ImageError
from piolet.images.reference import Reference, is_path, parse

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("docker.io/ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("index.docker.io/library/ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("docker://ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("team/app", "docker.io/team/app:latest"),
        ("nvcr.io/nvidia/pytorch:25.01-py3", "nvcr.io/nvidia/pytorch:25.01-py3"),
        ("nvcr.io#nvidia/pytorch:25.01-py3", "nvcr.io/nvidia/pytorch:25.01-py3"),
        ("docker://nvcr.io#nvidia/pytorch:1", "nvcr.io/nvidia/pytorch:1"),
        ("host:5000/a/b/c:tag", "host:5000/a/b/c:tag"),
        ("host:5000/a", "host:5000/a:latest"),
        ("registry#a", "registry:443/a:latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        ("localhost/mine:2", "localhost/mine:2"),
        ("Quay.IO/a/b", "quay.io/a/b:latest"),
        (f"ubuntu@sha256:{HEX}", f"docker.io/library/ubuntu@sha256:{HEX}"),
        (f"ubuntu:1@sha256:{HEX}", f"docker.io/library/ubuntu@sha256:{HEX}"),
        (f"nvcr.io#a/b@sha256:{HEX}", f"nvcr.io/a/b@sha256:{HEX}"),
    ],
)
def test_normalised(text: str, meant: str) -> None:
    assert str(parse(text)) == meant
    assert str(parse(meant)) == meant


def test_user_before_registry() -> None:
    assert parse("$oauthtoken@nvcr.io#nvidia/x:1") == Reference("nvcr.io", "nvidia/x", "1", None, "$oauthtoken")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 to 1024 characters"),
        ("a" * 1025, "1 to 1024 characters"),
        ("two words", "white space"),
        ("a\0b", "white space"),
        ("Ubuntu", "malformed name"),
        ("ubuntu:", "malformed tag"),
        ("ubuntu:-x", "malformed tag"),
        ("ubuntu:" + "t" * 129, "malformed tag"),
        ("ubuntu@sha256:abc", "malformed digest"),
        ("ubuntu@", "empty digest"),
        ("ubuntu@md5:" + HEX, "malformed digest"),
        ("host:99999/a", "malformed registry"),
        ("-h.io/a", "malformed registry"),
        ("nvcr.io#a#b", "more than one"),
        ("oci:dir", "is not a registry's"),
        ("http://host/a", "unknown scheme"),
        ("a//b", "malformed name"),
        ("../a", "malformed"),
        ("a/../b", "malformed name"),
        ("docker://", "malformed name"),
        ("#", "malformed name"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        parse(text)


def test_upper_case_gets_a_hint() -> None:
    with pytest.raises(ImageError) as caught:
        parse("nvcr.io/NVIDIA/PyTorch:1")
    assert caught.value.hint == "names are lower case: 'nvidia/pytorch'"


@given(st.text(max_size=60))
def test_anything_is_parsed_or_refused(text: str) -> None:
    try:
        again = parse(text)
    except ImageError:
        return
    assert str(parse(str(again))) == str(again)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:5000/a", True),
        ("127.8.9.1/a", True),
        ("localhost:5000/a", True),
        ("[::1]:5/a", True),
        ("a.b/c", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert parse(text).is_loopback is loopback


def test_paths() -> None:
    assert is_path("/a/b") and is_path("./x") and is_path("../x") and is_path("x.sqsh")
    assert not is_path("ubuntu:24.04") and not is_path("host/x")
