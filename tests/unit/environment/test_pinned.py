"""Which definition a step had: kept without secrets, found by job and step, and usable again as a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.environment import pinned
from piolet.environment.definition import Definition, Mount
from piolet.images.info import Image

DIGEST = "sha256:" + "c" * 64
DEFINITION = Definition(
    request="./x.toml",
    files=("/home/a/x.toml",),
    image=Image("quay.io:5000/team/app:1", "site", DIGEST),
    workdir="/srv",
    workdir_given=True,
    mounts=(Mount("/data", "/d", flags=("ro",)), Mount("", "/t", "tmpfs")),
    dropped=("/tmp",),
    set_env={"A": "b ${C}", "HF_TOKEN": "hf-secret"},
    unset_env=("LC_ALL", "GONE"),
    annotations={"com.x": "y"},
)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def cache(home: dict[str, str]) -> Path:
    return Path(home["HOME"]) / ".cache/piolet/env"


def start(home: dict[str, str], step: str, definition: Definition = DEFINITION) -> None:
    """Do what submit does, and then srun's plugin."""
    pinned.keep(home, b"", definition)
    (cache(home) / f"{step}.job").symlink_to(pinned.hash_of(definition.to_json()))


def test_a_job_and_its_steps(home: dict[str, str]) -> None:
    start(home, "12.10")
    start(home, "12.0")
    start(home, "123.0")
    assert [one.step for one in pinned.find(home, "12")] == ["12.0", "12.10"]
    (one,) = pinned.find(home, "12.10")
    assert one.secret == ("HF_TOKEN",) and one.definition.set_env == {"A": "b ${C}"}
    assert one.definition.image == DEFINITION.image
    assert "hf-secret" not in "".join(path.read_text() for path in cache(home).iterdir() if not path.is_symlink())
    assert {path.stat().st_mode & 0o777 for path in cache(home).glob("*.def")} == {0o600}


HERE, THERE = ({"SLURM_CLUSTER_NAME": name} for name in ("alps", "rigi.2"))


def of(home: dict[str, str], job: str) -> list[tuple[str, str]]:
    """Return what is known of a job: (step, request)."""
    return [(one.step, one.definition.request) for one in pinned.find(home, job)]


def test_clusters_that_share_homes_do_not_find_each_others_jobs(home: dict[str, str]) -> None:
    start(home, "12.0.alps", Definition(request="a"))
    start(home, "12.0.rigi.2", Definition(request="b"))
    start(home, "12.1.rigi.2", Definition(request="c"))
    start(home, "13.0.rigi.2", Definition(request="d"))
    assert of(home | HERE, "12") == [("12.0", "a")] and of(home | HERE, "12.0") == [("12.0", "a")]
    assert of(home | THERE, "12") == [("12.0", "b"), ("12.1", "c")]
    for job in ("12.1", "13"):
        with pytest.raises(EnvironmentFileError, match="nothing is known of the environment") as unknown:
            of(home | HERE, job)
    assert unknown.value.message == "nothing is known of the environment of job 13 on this cluster"
    assert unknown.value.hint == "there is one of that number on rigi.2: ask there"
    assert pinned.again(home | THERE, "@12.1")[0].request == "@12.1"


def test_what_an_earlier_release_left_counts_where_nothing_else_is_known(home: dict[str, str]) -> None:
    start(home, "12.0", Definition(request="old"))
    assert of(home, "12") == [("12.0", "old")], "nobody is asked which cluster this is"
    start(home, "12.0.rigi.2", Definition(request="b"))
    assert of(home | HERE, "12") == [("12.0", "old")]
    start(home, "12.1.alps", Definition(request="new"))
    assert of(home | HERE, "12") == [("12.1", "new")]


def test_a_step_of_an_srun_that_joined_the_job_from_outside(home: dict[str, str]) -> None:
    """It was not told the cluster's name: it is this job's, unless it can be another cluster's."""
    start(home, "12.0.alps", Definition(request="a"))
    start(home, "12.0", Definition(request="years ago"))
    start(home, "12.1", Definition(request="joined"))
    assert of(home | HERE, "12") == [("12.0", "a"), ("12.1", "joined")] and of(home | HERE, "12.1")
    start(home, "12.0.rigi.2", Definition(request="b"))
    assert of(home | HERE, "12") == [("12.0", "a")] and of(home | THERE, "12") == [("12.0", "b")]


def test_slurm_is_asked_which_cluster_this_is_where_it_matters(home: dict[str, str]) -> None:
    """Where it does not say, a job of one cluster alone is that one."""
    asked = [""]

    def find(job: str, name: str) -> list[str]:
        def ask(_: Mapping[str, str]) -> str:
            asked[0] += job
            return name

        return [one.definition.request for one in pinned.find(home, job, ask)]

    start(home, "7.0", Definition(request="old"))
    start(home, "12.0.alps", Definition(request="a"))
    assert find("7", "rigi.2") == ["old"] and asked == [""]
    assert find("12", "alps") == ["a"] and asked == ["12"]
    assert find("12", "") == ["a"]
    with pytest.raises(EnvironmentFileError):
        find("12", "rigi.2")
    start(home, "12.0.rigi.2", Definition(request="b"))
    with pytest.raises(EnvironmentFileError, match=r"of the clusters alps, rigi\.2, and Slurm does") as unclear:
        find("12", "")
    assert unclear.value.hint == "set SLURM_CLUSTER_NAME to the one that is meant"


@pytest.mark.parametrize(
    ("script", "name"), [("echo 'ClusterName             = alps'", "alps"), ("echo no >&2; exit 1", "")]
)
def test_whose_cluster_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pinned.own_cluster({}) == name and pinned.own_cluster(HERE) == "alps"


@pytest.mark.parametrize("job", ["7", "12.1", "x", "", "12.", "../12", "12.0.0"])
def test_what_is_not_known(home: dict[str, str], job: str) -> None:
    start(home, "12.0")
    with pytest.raises(EnvironmentFileError, match=r"nothing is known|neither a job nor a step"):
        pinned.find(home, job)
    with pytest.raises(EnvironmentFileError):
        pinned.find({}, "12")


def test_torn_and_foreign_entries_are_nothing(home: dict[str, str], tmp_path: Path) -> None:
    start(home, "12.0")
    (cache(home) / "12.1.job").symlink_to("../../../etc/passwd")
    (cache(home) / "12.2.job").write_text("no link")
    (cache(home) / "12.3.job").symlink_to("0" * 16)
    for number, text in enumerate(
        ("", "[]", "{}", '{"definition": 7, "secret": []}', '{"definition": "{}", "secret": 1}')
    ):
        (cache(home) / f"{number:016x}.def").write_text(text)
        (cache(home) / f"13.{number}.job").symlink_to(f"{number:016x}")
    assert [one.step for one in pinned.find(home, "12")] == ["12.0"]
    with pytest.raises(EnvironmentFileError, match="nothing is known"):
        pinned.find(home, "13")


def test_the_same_once_more(home: dict[str, str]) -> None:
    start(home, "12.0")
    start(home, "12.1")
    definition, secret = pinned.again(home, "@12")
    assert definition.request == "@12" and definition.image == DEFINITION.image and secret == ("HF_TOKEN",)
    start(home, "12.2", Definition(request="other", set_env={"A": "z"}))
    with pytest.raises(EnvironmentFileError, match="had different environments") as refused:
        pinned.again(home, "@12")
    assert refused.value.hint == "name one of them: @12.0, @12.1, @12.2"
    assert pinned.again(home, "@12.2")[0].set_env == {"A": "z"}


def test_the_text_is_a_definition_file_with_the_digest(home: dict[str, str]) -> None:
    start(home, "12.0")
    assert (
        pinned.text(pinned.find(home, "12")[0])
        == f"""\
# step 12.0, --environment=./x.toml
# from /home/a/x.toml
image = "quay.io:5000/team/app@{DIGEST}"
workdir = "/srv"
entrypoint = false
writable = true
mounts = ["!/tmp", "/data:/d:ro", "tmpfs:/t"]
devices = []

[env]
A = "b $${{C}}"
# HF_TOKEN was set, and its value is not kept
GONE = ""

[annotations]
com.x = "y"
""".replace("com.x", '"com.x"')
    )


def test_an_image_that_is_a_file(home: dict[str, str]) -> None:
    definition = Definition(request="x", image=Image("/a/b.sqsh", "user", None, "/a/b.sqsh"))
    start(home, "1.0", definition)
    text = pinned.text(pinned.find(home, "1")[0])
    assert 'image = "/a/b.sqsh"' in text and "what is in it now may be something else" in text


def test_a_secret_within_another_value_is_not_kept(home: dict[str, str]) -> None:
    definition = Definition(request="x", set_env={"URL": "https://a:topsecret@b", "A": "b"})
    pinned.keep(home, b"", definition, ["topsecret"])
    (cache(home) / "1.0.job").symlink_to(pinned.hash_of(definition.to_json()))
    (one,) = pinned.find(home, "1")
    assert one.secret == ("URL",) and one.definition.set_env == {"A": "b"}
    short = Definition(request="z", set_env={"A_KEY": "1", "B": "11"})
    pinned.keep(home, b"", short)
    (cache(home) / "2.0.job").symlink_to(pinned.hash_of(short.to_json()))
    assert pinned.find(home, "2")[0].definition.set_env == {"B": "11"}
    mounted = Definition(request="y", workdir="/topsecret")
    pinned.keep(home, b"", mounted, ["topsecret"])
    assert not [path for path in cache(home).glob("*.def") if "topsecret" in path.read_text()]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    pinned.keep({"HOME": "/proc/none"}, b"", DEFINITION)
    pinned.keep({}, b"", DEFINITION)


def test_old_links_go(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        start(home, f"{number}.0", Definition(request=str(number)))
        path = cache(home) / f"{number}.0.job"
        os.utime(path, (number, number), follow_symlinks=False)
    for path in cache(home).glob("*.def"):
        os.utime(path, (0, 0))
    monkeypatch.setattr(pinned, "_ENTRIES", 10)
    pinned.keep(home, b"", DEFINITION)
    assert sorted(int(path.stem.partition(".")[0]) for path in cache(home).glob("*.job")) == [7, 8, 9, 10, 11]
    assert len(list(cache(home).glob("*.def"))) == 6, "those of five steps, and the new one"


def test_links_of_all_clusters_and_of_all_releases_are_counted_together(
    home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("1.0", "1.0.alps", "1.0.rigi.2") * 4):
        path = cache(home) / f"{number}{name}.job"
        start(home, f"{number}{name}", Definition(request="x"))
        os.utime(path, (number, number), follow_symlinks=False)
    monkeypatch.setattr(pinned, "_ENTRIES", 10)
    pinned.keep(home, b"", DEFINITION)
    assert sorted(os.lstat(path).st_mtime for path in cache(home).glob("*.job")) == [7, 8, 9, 10, 11]


def test_definitions_of_steps_that_never_began_go(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are old: a new one may be of a step that is about to start."""
    monkeypatch.setattr(pinned, "_ENTRIES", 10)
    start(home, "1.0.alps", Definition(request="used"))
    for number in range(12):
        pinned.keep(home, b"", Definition(request=str(number)))
    assert len(list(cache(home).glob("*.def"))) == 13
    for path in cache(home).glob("*.def"):
        os.utime(path, (0, 0))
    pinned.keep(home, b"", DEFINITION)
    assert len(list(cache(home).glob("*.def"))) == 2 and of(home | HERE, "1") == [("1.0", "used")]


def test_steps_of_an_earlier_job_of_the_same_number_are_not_its_steps(home: dict[str, str]) -> None:
    """Job numbers begin again where slurmctld has lost its state, and a requeued job begins with step 0 again."""
    start(home, "7.0")
    start(home, "7.1", dataclasses.replace(DEFINITION, workdir="/of-the-earlier-one"))
    os.utime(cache(home) / "7.1.job", (1e9, 1e9), follow_symlinks=False)
    assert [one.step for one in pinned.find(home, "7")] == ["7.0"]
    assert pinned.again(home, "@7")[0].workdir == "/srv"
    start(home, "7.2")
    assert [one.step for one in pinned.find(home, "7")] == ["7.0", "7.2"]
