"""`job:JOB.STEP`: what is a step, what travels, and what holds for a step that enters."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError, PioletError
from piolet.environment import attach, pinned
from piolet.environment.definition import Definition, Save, Startup, from_json
from piolet.images.info import Image

OF = Definition(
    request="./x.toml",
    image=Image("app:1", "site", "sha256:" + "c" * 64),
    workdir="/srv",
    workdir_given=True,
    entrypoint=("/entry",),
    set_env={"A": "b", "HF_TOKEN": "hf-secret"},
    unset_env=("GONE",),
    remap_root=True,
    startup=Startup(("true",), "node", 60.0),
    save=Save(file="/home/a/x.sqsh"),
)


@pytest.mark.parametrize("name", ["12.0", "12", "12.batch", "4294967295.4294967290"])
def test_what_is_a_step(name: str) -> None:
    assert attach.is_asked(f"job:{name}") and attach.step_in(f"job:{name}") == name
    assert attach.job_of(name) == name.split(".")[0]
    sent = Definition(request="x", attach=name)
    assert from_json(sent.to_json()) == sent


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", "job:1234.0"),
        ("x", "job:1234.0"),
        ("12.", "job:1234.0"),
        ("12.0.0", "job:1234.0"),
        ("12.extern", "job:1234.0"),
        ("../12", "job:1234.0"),
        ("1\N{ARABIC-INDIC DIGIT TWO}", "job:1234.0"),
        ("12345678901.0", "job:1234.0"),
        ("12_3.0", "squeue -o %A"),
        ("12+1.0", "squeue -o %A"),
        ("12.0,image=x", "nothing of it can be changed"),
    ],
)
def test_what_is_none(name: str, hint: str) -> None:
    with pytest.raises(EnvironmentFileError, match="is no step") as caught:
        attach.step_in(f"job:{name}")
    assert hint in (caught.value.hint or "")
    if name:
        with pytest.raises(PioletError, match="names something that is no step"):
            from_json(Definition(request="x", attach=name).to_json())


def test_nodes_of_an_earlier_release_are_told_of_it_only_where_it_is() -> None:
    assert b"attach" not in OF.to_json()
    assert b'"attach":"12.0"' in Definition(request="x", attach="12.0").to_json()


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def start(home: dict[str, str], step: str, definition: Definition) -> None:
    """Do what submit does, and then srun's plugin."""
    pinned.keep(home, b"", definition)
    (Path(home["HOME"]) / f".cache/piolet/env/{step}.job").symlink_to(pinned.hash_of(definition.to_json()))


def test_what_is_known_of_the_step_travels(home: dict[str, str]) -> None:
    """But for values of secrets, which are kept nowhere; what is mounted is the container's own."""
    start(home, "12.0", OF)
    sent = attach.definition("job:12.0", home)
    assert (sent.attach, sent.image, sent.workdir, sent.remap_root) == ("12.0", OF.image, "/srv", True)
    assert sent.set_env == {"A": "b"} and sent.unset_env == ("GONE",) and sent.entrypoint == ()
    assert attach.definition("job:12", home).set_env == {"A": "b"}
    start(home, "12.1", attach.definition("job:12.0", home))
    assert attach.definition("job:12", home).set_env == {"A": "b"}, "one that attached has no container of its own"
    start(home, "12.2", Definition(request="y", image=OF.image))
    assert attach.definition("job:12", home).image is None, "which of the two is meant the node says"


def test_of_a_step_of_which_nothing_is_known_the_name_travels(home: dict[str, str]) -> None:
    assert attach.definition("job:7.0", home) == Definition(request="job:7.0", attach="7.0")
    assert attach.definition("job:7.batch", home) == Definition(request="job:7.batch", attach="7.batch")


def test_a_job_that_was_attached_to_is_shown_and_started_again(home: dict[str, str]) -> None:
    start(home, "12.0", OF)
    sent = attach.definition("job:12.0", home)
    start(home, "12.1", sent)
    shown = [pinned.text(one) for one in pinned.find(home, "12")]
    assert (
        "image = " in shown[0] and shown[1] == "# step 12.1, --environment=job:12.0\n# in the container of step 12.0\n"
    )
    again, secret = pinned.again(home, "@12")
    assert again.attach == "" and secret == ("HF_TOKEN",)
    with pytest.raises(EnvironmentFileError, match=r"the steps of @12\.1 were in containers of others"):
        pinned.again(home, "@12.1")


def test_what_holds_for_a_step_that_enters() -> None:
    asked = Definition(request="job:12.0", attach="12.0")
    inside = attach.effective(OF, asked, "/where/tasks/start")
    assert (inside.workdir, inside.workdir_given, inside.entrypoint) == ("/where/tasks/start", True, ())
    assert (inside.startup, inside.save) == (None, None)
    assert inside.set_env == OF.set_env and inside.remap_root and inside.attach == "12.0"
    there = attach.effective(OF, Definition(request="x", attach="12.0", chdir="/own"), "/srv")
    assert there.workdir == "/own"
