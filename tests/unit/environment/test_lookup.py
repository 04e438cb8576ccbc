"""Which file a request means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.environment import lookup
from piolet.submission.dependencies import Dependency, Host, Kind


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name in ("here", "home/.edf", "site", "one", "two"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def host(places: Path, **variables: str) -> Host:
    return Host({"HOME": f"{places}/home", **variables}, f"{places}/here")


def find(request: str, at: Host, places: Path) -> str:
    return lookup.find(request, at, [f"{places}/site"])


def refusal(request: str, at: Host, places: Path) -> EnvironmentFileError:
    with pytest.raises(EnvironmentFileError) as caught:
        find(request, at, places)
    return caught.value


@pytest.mark.parametrize("request_", ["x.toml", "./x.toml", "../here/x.toml", "sub/../x.toml", ".//x.toml"])
def test_a_path_is_relative_to_the_working_directory(places: Path, request_: str) -> None:
    (places / "here/x.toml").touch()
    (places / "here/sub").mkdir()
    (places / "home/.edf/x.toml").touch()
    found = find(request_, host(places), places)
    assert os.path.samefile(found, places / "here/x.toml")
    assert found.startswith("/")


def test_an_absolute_path(places: Path) -> None:
    (places / "one/x").touch()
    at = host(places)
    assert find(f"{places}//one/./x", at, places) == f"{places}/one/x"
    assert at.dependencies == ()


def test_a_bare_name_is_not_looked_for_in_the_working_directory(places: Path) -> None:
    (places / "here/x.toml").touch()
    error = refusal("x", host(places), places)
    assert error.message == f"there is no environment 'x' in {places}/home/.edf, {places}/site"
    assert error.hint == "a file in the working directory is named with a slash: ./x.toml"


def test_a_bare_name_with_and_without_its_suffix(places: Path) -> None:
    (places / "home/.edf/x.toml").touch()
    (places / "site/y").touch()
    assert find("x", host(places), places) == f"{places}/home/.edf/x.toml"
    assert find("x.toml", host(places), places) == f"{places}/home/.edf/x.toml"
    assert find("y", host(places), places) == f"{places}/site/y"


def test_edf_path_replaces_the_default_and_its_order_counts(places: Path) -> None:
    for name in ("home/.edf", "two", "site"):
        (places / name / "x.toml").touch()
    at = host(places, EDF_PATH=f"{places}/one::{places}/two")
    assert find("x", at, places) == f"{places}/two/x.toml"
    assert at.dependencies == (
        Dependency(Kind.VARIABLE, "EDF_PATH", f"{places}/one::{places}/two"),
        Dependency(Kind.ABSENT, f"{places}/one/x.toml"),
        Dependency(Kind.ABSENT, f"{places}/one/x"),
    )


def test_an_unset_edf_path_is_a_dependency_and_so_is_home(places: Path) -> None:
    (places / "home/.edf/x.toml").touch()
    at = host(places)
    find("x", at, places)
    assert at.dependencies == (
        Dependency(Kind.UNSET, "EDF_PATH"),
        Dependency(Kind.VARIABLE, "HOME", f"{places}/home"),
    )


def test_a_directory_is_not_an_environment(places: Path) -> None:
    (places / "home/.edf/x").mkdir()
    (places / "site/x.toml").touch()
    assert find("x", host(places), places) == f"{places}/site/x.toml"


def test_the_nearest_name_is_a_hint(places: Path) -> None:
    (places / "site/pytorch.toml").touch()
    assert refusal("pytroch", host(places), places).hint == "did you mean 'pytorch'?"
    (places / "here/jax.toml").touch()
    assert refusal("jaxx.toml", host(places), places).hint == "did you mean 'jax.toml'?"


def test_a_path_that_is_not_there(places: Path) -> None:
    (places / "here/my.toml").touch()
    error = refusal("./my", host(places), places)
    assert error.message == f"the environment file {places}/here/my does not exist"
    assert error.hint == f"did you mean {places}/here/my.toml?"
    assert refusal("./zz.toml", host(places), places).hint is None
    assert refusal("./mmy.toml", host(places), places).hint == f"did you mean {places}/here/my.toml?"
    assert refusal("./my.toml/x", host(places), places).message.endswith("my.toml/x does not exist")


@pytest.mark.parametrize("request_", ["~/x.toml", "$HOME/x.toml", "${HOME}/x.toml"])
def test_what_a_shell_would_replace(places: Path, request_: str) -> None:
    """As in an #SBATCH line, where neither `~` nor `$HOME` is replaced."""
    error = refusal(request_, host(places), places)
    assert error.message == (
        f"there is no file {request_}: neither '~' nor a variable is replaced there, nor in an #SBATCH line"
    )
    assert error.hint == f"write {places}/home/x.toml"


def test_a_variable_that_is_not_there_either(places: Path) -> None:
    assert refusal("$NO_SUCH/x.toml", host(places), places).hint == "write the whole path"
    assert "does not exist" in refusal("./$HOME/x.toml", host(places), places).message


def test_no_place_to_look(places: Path) -> None:
    with pytest.raises(EnvironmentFileError, match=r"in any directory \(EDF_PATH and HOME are unset\)"):
        lookup.find("x", Host({}, "/"), [])


def test_refusals(places: Path) -> None:
    assert refusal("", host(places), places).message == "the name of the environment is empty"
    for bad in ("a\0b", "a\udcff"):
        assert "is not UTF-8 text without NUL bytes" in refusal(bad, host(places), places).message
    assert "holds the relative directory 'a'" in refusal("x", host(places, EDF_PATH="a"), places).message
    assert refusal("./" + "a" * 300, host(places), places).message.endswith("File name too long")
    (places / "here/loop").symlink_to("loop")
    assert "cannot look at" in refusal("./loop", host(places), places).message
