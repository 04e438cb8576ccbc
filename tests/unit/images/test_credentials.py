"""Where a user's credentials for a registry are found, by whom they were written, and what is said of the rest."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ImageError
from piolet.images import credentials, helpers, netrc
from piolet.images.failures import Denied
from piolet.images.reference import parse

from tests.support.waiting import wait_until

NGC = """\
# NVIDIA GPU Cloud
machine nvcr.io login $oauthtoken password nvapi-abc
machine authn.nvidia.com login $oauthtoken password nvapi-abc
machine auth.docker.io login me password hub
machine gcr.io login oauth2accesstoken password $(gcloud auth print-access-token)
machine ghcr.io login me password $GH_TOKEN
machine quay.io
  login me
  password several-lines
"""


def word(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


def auth(path: Path, **entries: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {key.replace("__", "/").replace("_", "."): v for key, v in entries.items()}}))


def test_where_credentials_are_found(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    reference = parse("quay.io/team/app:1")
    assert credentials.find(reference, home).entry is None
    auth(tmp_path / "home/.docker/config.json", quay_io=word("docker"))
    assert credentials.find(reference, home).entry == word("docker")
    auth(tmp_path / "home/.config/containers/auth.json", quay_io=word("config"))
    assert credentials.find(reference, home).entry == word("config")
    auth(tmp_path / "run/containers/auth.json", other_io=word("x"))
    assert credentials.find(reference, home).entry == word("config")
    auth(tmp_path / "named.json", quay_io=word("named"), quay_io__team=word("team"))
    named = {**home, "REGISTRY_AUTH_FILE": str(tmp_path / "named.json")}
    assert credentials.find(reference, named).entry == word("team"), "the narrowest entry"
    assert credentials.find(parse("quay.io/else/app"), named).entry == word("named")
    assert credentials.find(parse("named@quay.io#team/app"), named).entry == word("named"), "the user who was asked for"
    with pytest.raises(ImageError, match=r"no credentials of 'nobody' for quay\.io"):
        credentials.find(parse("nobody@quay.io#team/app"), named)
    with pytest.raises(ImageError, match="cannot read REGISTRY_AUTH_FILE"):
        credentials.find(reference, {"REGISTRY_AUTH_FILE": "/nowhere"})


def test_docker_hub_has_an_old_name(tmp_path: Path) -> None:
    path = tmp_path / ".docker/config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": word("hub")}, "credsStore": "desktop"}))
    assert credentials.find(parse("ubuntu"), {"HOME": str(tmp_path)}).entry == word("hub")


@pytest.mark.parametrize("text", ["[]", '{"auths": []}', '{"auths": {"quay.io": 7}}', '{"auths": {"quay.io": {}}}'])
def test_files_without_credentials(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert credentials.find(parse("quay.io/a"), {"REGISTRY_AUTH_FILE": str(tmp_path / "a.json")}).entry is None
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ImageError, match="not JSON"):
        credentials.find(parse("quay.io/a"), {"REGISTRY_AUTH_FILE": str(tmp_path / "a.json")})


@pytest.mark.parametrize("text", ["", "{", '{"auths": {"quay.io"', "[" * 100_000], ids=["empty", "1", "torn", "deep"])
def test_a_torn_file_that_nobody_named_has_no_credentials(tmp_path: Path, text: str) -> None:
    auth(tmp_path / ".config/containers/auth.json", other_io=word("x"))
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(text)
    assert credentials.find(parse("quay.io/a"), {"HOME": str(tmp_path)}).entry is None
    assert credentials.find(parse("other.io/a"), {"HOME": str(tmp_path)}).entry == word("x")


def enroot(home: Path, text: str = NGC) -> dict[str, str]:
    (home / ".config/enroot").mkdir(parents=True)
    (home / ".config/enroot/.credentials").write_text(text)
    return {"HOME": str(home)}


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("reference", "entry"),
    [
        ("nvcr.io#nvidia/pytorch:25.01-py3", basic("$oauthtoken", "nvapi-abc")),
        ("ubuntu", basic("me", "hub")),
        ("ghcr.io/team/app", basic("me", "from the variable")),
        ("quay.io:443/team/app", basic("me", "several-lines")),
        ("gcr.io/team/app", None),
        ("other.io/team/app", None),
    ],
)
def test_credentials_of_enroot(tmp_path: Path, reference: str, entry: dict[str, str] | None) -> None:
    home = enroot(tmp_path) | {"GH_TOKEN": "from the variable"}
    assert credentials.find(parse(reference), home).entry == entry


def test_enroots_file_can_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / ".credentials").write_text("machine quay.io login me password x\n")
    assert credentials.find(parse("quay.io/a"), {"ENROOT_CONFIG_PATH": str(tmp_path)}).entry == basic("me", "x")
    moved = tmp_path / "enroot"
    moved.mkdir()
    (tmp_path / ".credentials").rename(moved / ".credentials")
    assert credentials.find(parse("quay.io/a"), {"XDG_CONFIG_HOME": str(tmp_path)}).entry == basic("me", "x")


def test_a_password_that_is_a_command_is_told_of_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    home = enroot(
        tmp_path, f"machine gcr.io login me password $(touch {witness})\nmachine a.io login b password $NONE\n"
    )
    found = credentials.find(parse("gcr.io/a"), home)
    assert found.entry is None and not witness.exists()
    with pytest.raises(Denied) as refused, found.told():
        raise Denied("cannot get gcr.io/a: denied", "log in")
    assert str(refused.value.hint) == (
        f"{tmp_path}/.config/enroot/.credentials has an entry for gcr.io, "
        "but its password is a command, which Piolet does not run; log in"
    )
    assert "the variable NONE is not set" in credentials.find(parse("a.io/a"), home).seen[0]


@pytest.mark.parametrize(
    "text", ["", "machine", "machine a.io", "machine a.io login", "default login a password b", "\0"]
)
def test_a_torn_netrc_has_nothing(text: str) -> None:
    assert list(netrc.lines(text, {})) == []


def test_user_and_password_of_a_configuration(tmp_path: Path) -> None:
    auth(tmp_path / ".docker/config.json", quay_io={"username": "me", "password": "x"})
    assert credentials.find(parse("quay.io/a"), {"HOME": str(tmp_path)}).entry == basic("me", "x")
    assert credentials.find(parse("me@quay.io#a"), {"HOME": str(tmp_path)}).entry == basic("me", "x")
    auth(tmp_path / "moved/config.json", quay_io={"username": "you", "password": "y"})
    elsewhere = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "moved")}
    assert credentials.find(parse("quay.io/a"), elsewhere).entry == basic("you", "y")


def helper(folder: Path, name: str, script: str) -> dict[str, str]:
    """Install a helper; return the environment in which it is found."""
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"HOME": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}


def configuration(home: str, **keys: Any) -> None:
    path = Path(home) / ".docker/config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(keys))


def test_a_helper_is_asked_for_the_registry(tmp_path: Path) -> None:
    home = helper(tmp_path, "ecr", 'read -r server; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$server\\"}"')
    configuration(home["HOME"], credHelpers={"quay.io": "ecr", "https://index.docker.io/v1/": "ecr"})
    assert credentials.find(parse("quay.io/a"), home).entry == basic("get", "quay.io")
    assert credentials.find(parse("ubuntu"), home).entry == basic("get", "https://index.docker.io/v1/")
    assert credentials.find(parse("other.io/a"), home).entry is None, "it is not named for this one"
    configuration(home["HOME"], credsStore="ecr", auths={"quay.io": {}})
    assert credentials.find(parse("quay.io/a"), home).entry == basic("get", "quay.io")
    configuration(home["HOME"], credHelpers={"quay.io": "ecr"}, auths={"quay.io": word("x")})
    assert credentials.find(parse("quay.io/a"), home).entry == basic("get", "quay.io"), "it comes before the others"


def test_a_helpers_identity_token(tmp_path: Path) -> None:
    home = helper(tmp_path, "x", """echo '{"Username": "<token>", "Secret": "abc"}'""")
    configuration(home["HOME"], credsStore="x")
    assert credentials.find(parse("quay.io/a"), home).entry == {"identitytoken": "abc"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no keyring here'; exit 1", "ended with status 1: no keyring here"),
        ("echo '[]'", "ended with status 0: no JSON"),
        ("echo '{}'", "gave no user and secret"),
        ("head -c 100000 /dev/zero", "ended with status"),
        ("echo 'credentials not found in native keychain'; exit 1", None),
    ],
)
def test_a_helper_that_gives_nothing(tmp_path: Path, script: str, said: str | None) -> None:
    home = helper(tmp_path, "x", script)
    configuration(home["HOME"], credHelpers={"quay.io": "x"})
    found = credentials.find(parse("quay.io/a"), home)
    assert found.entry is None
    assert (said in found.seen[0]) if said else found.seen == ()


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    configuration(str(tmp_path), credHelpers={"quay.io": "nowhere", "a.io": "../../bin/sh"})
    home = {"HOME": str(tmp_path)}
    assert "docker-credential-nowhere is not on your PATH" in credentials.find(parse("quay.io/a"), home).seen[0]
    assert "is not a helper's name" in credentials.find(parse("a.io/a"), home).seen[0]
    with pytest.raises(ImageError) as refused:
        credentials.find(parse("me@quay.io#a"), home)
    assert "docker-credential-nowhere is not on your PATH; log in first" in str(refused.value.hint)


def test_a_helper_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    home = helper(tmp_path, "slow", f"sleep 60 & echo $! >{tmp_path}/pid; wait")
    began = time.monotonic()
    with pytest.raises(helpers.HelperError, match=r"did not answer within 0\.5 s"):
        helpers.ask("slow", "quay.io", home, 0.5)
    assert time.monotonic() - began < 10
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(child), what="the end of what the helper started")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
