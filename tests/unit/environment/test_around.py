"""[startup] and save: what a definition file says of them, and what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.base.errors import ImageError, PioletError
from piolet.environment import attach, later, pinned
from piolet.environment.definition import Definition, Save, Startup, from_json
from piolet.environment.explain import explain
from piolet.environment.export import command
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.written import changed, new
from piolet.images.info import Image, ImageInfo
from piolet.submission.dependencies import Dependency, Host, Kind

from tests.unit.environment.rendering import DIGEST, INFO, Render, refusal

IMAGE = 'image = "img"\n'
STARTUP = '[startup]\ncommands = ["echo 1", "echo 2"]\nper = "job"\ntimeout = "90s"\n'


@pytest.mark.parametrize(
    ("text", "startup"),
    [
        ('[startup]\ncommands = "make"\n', Startup(("make",), "node", 600.0)),
        (STARTUP, Startup(("echo 1", "echo 2"), "job", 90.0)),
        ('[startup]\ncommands = []\nper = "job"\n', None),
        ('[startup]\ncommands = ["", " "]\n', None),
        ("[startup]\n", None),
        ("", None),
    ],
)
def test_startup(made: Render, text: str, startup: Startup | None) -> None:
    definition = made(IMAGE + text).definition
    assert definition.startup == startup
    assert from_json(definition.to_json()) == definition


def test_keys_of_startup_meet_one_by_one_and_can_be_taken_back(made: Render) -> None:
    base = {"base": IMAGE + STARTUP}
    above = 'base_environment = "./base.toml"\n'
    assert made(f'{above}[startup]\ntimeout = "1h"\n', **base).definition.startup == Startup(
        ("echo 1", "echo 2"), "job", 3600.0
    )
    assert made(f'{above}[startup]\ncommands = ""\n', **base).definition.startup is None


def test_what_the_shell_replaces_stays(made: Render, tmp_path: Path) -> None:
    text = f'{IMAGE}[startup]\ncommands = "cp ${{HOME}}/x $TMPDIR/$(date) $${{Y}} ${{SLURM_JOB_ID}}"\n'
    startup = made(text).definition.startup
    assert startup is not None
    assert startup.commands == (f"cp {tmp_path}/x $TMPDIR/$(date) ${{Y}} ${{SLURM_JOB_ID}}",)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('[startup]\ncommand = "x"\n', "unknown key 'command' in [startup]", "'commands'"),
        ('[startup]\nrun = "x"\n', "unknown key 'run'", "'commands'"),
        ('[startup]\ndeadline = "1s"\n', "unknown key 'deadline'", "'timeout'"),
        ('[startup]\nper_node = "1s"\n', "unknown key 'per_node'", "the keys are commands, per, timeout"),
        ("[startup]\ncommands = 3\n", "commands must be a string or an array of strings, not a number", None),
        ("[startup]\ncommands = [true]\n", "must be a string, not true or false", "in quotes"),
        ('[startup]\ncommands = "x"\nper = "task"\n', "per must be 'node' or 'job', not 'task'", None),
        ('[startup]\ncommands = "x"\ntimeout = "soon"\n', "timeout must be a time of up to a day, not 'soon'", "5min"),
        ('[startup]\ncommands = "x"\ntimeout = "2d"\n', "not '2d'", "5min"),
        ('[startup]\ncommands = "x"\ntimeout = 60\n', "must be a string, not a number", 'in quotes: "60"'),
        ('[startup]\ncommands = "cat ${NOPE}"\n', "NOPE", "is written $NAME or $${NAME}"),
        ("startup = 3\n", "startup must be a table", "[startup]"),
        (f"[startup]\ncommands = {['x'] * 101}\n", "has 101 commands, more than the limit of 100", "script"),
        ('[setup]\ncommands = "x"\n', "unknown key 'setup'", "startup"),
        ('[env]\nsave = "x"\n', "'save' stands in the table [env]", "move it above"),
    ],
)
def test_what_is_wrong_with_startup(made: Render, text: str, said: str, hint: str | None) -> None:
    error = refusal(made, IMAGE + text)
    assert said in error.message
    assert (error.hint is None) if hint is None else hint in (error.hint or "")
    assert error.location is not None


def test_startup_and_save_need_an_image(made: Render) -> None:
    assert "needs an image" in refusal(made, '[startup]\ncommands = "x"\n').message
    assert "nothing to save without an image" in refusal(made, 'save = "x"\n').message


def test_save_as_a_file_or_a_name(made: Render, tmp_path: Path) -> None:
    kept = {"env": INFO.env, "entrypoint": INFO.entrypoint, "workdir": INFO.workdir}
    assert made(f'{IMAGE}save = "./x.sqsh"\n').definition.save == Save(file=f"{tmp_path}/x.sqsh", **kept)  # type: ignore[arg-type]
    assert made(f'{IMAGE}save = "mine:1"\n').definition.save == Save(name="mine:1", **kept)  # type: ignore[arg-type]
    assert made(f'{IMAGE}save = "localhost/mine"\n').definition.save == Save(name="mine", **kept)  # type: ignore[arg-type]
    assert made(f'{IMAGE}save = ""\n').definition.save is None


def test_save_on_the_command_line(made: Render, host: Host, tmp_path: Path) -> None:
    made(f'{IMAGE}save = "one"\n')
    rendered = render("./x.toml,save=./two.sqsh", host, EnvironmentConfig(edf_path=()), lambda _: INFO)
    assert rendered.definition.save is not None and rendered.definition.save.file == f"{tmp_path}/two.sqsh"


def test_a_file_that_comes_to_be_makes_what_is_remembered_stale(made: Render, host: Host, tmp_path: Path) -> None:
    made(f'{IMAGE}save = "./x.sqsh"\n')
    assert Dependency(Kind.ABSENT, f"{tmp_path}/x.sqsh") in host.dependencies


def test_the_base_s_labels_go_along(made: Render) -> None:
    info = ImageInfo(Image("img", "site", DIGEST), labels={"org.x": "1"})
    save = made(f'{IMAGE}save = "mine:1"\n', info).definition.save
    assert save is not None and save.labels == {"org.x": "1"}


def test_the_job_s_number_comes_on_the_node(made: Render, tmp_path: Path) -> None:
    definition = made(f'{IMAGE}save = "./x-${{SLURM_JOB_ID}}.sqsh"\n').definition
    save = later.finish(definition, 12, "n1").save
    assert save is not None and save.file == f"{tmp_path}/x-12.sqsh"


@pytest.mark.parametrize(
    ("save", "said"),
    [
        ("./there.sqsh", "is there already"),
        ("./none/x.sqsh", "does not exist"),
        ("./x.tar", "does not end in .sqsh"),
        ("x@sha256:" + "a" * 64, "has a digest"),
        ("Not A Name", "white space"),
    ],
)
def test_where_nothing_can_be_saved(made: Render, tmp_path: Path, save: str, said: str) -> None:
    (tmp_path / "there.sqsh").touch()
    error = refusal(made, f'{IMAGE}save = "{save}"\n')
    assert said in error.message and error.location is not None


def test_a_read_only_root_has_nothing_to_save(made: Render) -> None:
    error = refusal(made, f'{IMAGE}writable = false\nsave = "x"\n')
    assert "nothing to save where nothing can be written" in error.message


def test_explained_text_means_the_same(made: Render, tmp_path: Path) -> None:
    rendered = made(f'{IMAGE}save = "./x.sqsh"\n{STARTUP}')
    text = explain(rendered)
    assert 'timeout = "90s"' in text and f'save = "{tmp_path}/x.sqsh"' in text
    (tmp_path / "again").mkdir()
    again = made(text).definition
    assert (again.startup, again.save) == (rendered.definition.startup, rendered.definition.save)


def test_a_job_s_definition_as_text_has_both(made: Render) -> None:
    rendered = made(f'{IMAGE}save = "mine:1"\nremap_root = true\n{STARTUP}')
    text = pinned.text(pinned.Pinned("1.0", rendered.definition, ()))
    again = made(text).definition
    assert (again.startup, again.save) == (rendered.definition.startup, rendered.definition.save)
    assert again.remap_root


def test_a_job_s_definition_again_saves_nothing(made: Render, tmp_path: Path) -> None:
    definition = made(f'{IMAGE}save = "mine:1"\n{STARTUP}').definition
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    pinned.keep(variables, b"", definition)
    folder = tmp_path / "cache" / "piolet" / "env"
    os.symlink(pinned.hash_of(definition.to_json()), folder / "7.0.job")
    again, _ = pinned.again(variables, "@7")
    assert again.save is None and again.startup == definition.startup


def test_who_enters_a_container_begins_and_saves_nothing(made: Render) -> None:
    definition = made(f'{IMAGE}save = "mine:1"\n{STARTUP}').definition
    found = attach.effective(definition, Definition("job:1.0", attach="1.0"), "/")
    assert found.startup is None and found.save is None


def test_other_engines_are_told(made: Render) -> None:
    definition = made(f'{IMAGE}save = "mine:1"\n{STARTUP}').definition
    lost = " ".join(command("podman", definition, INFO, "", ["true"]).lost)
    assert "podman commit" in lost and "[startup]" in lost


def test_files_are_written_with_both() -> None:
    text = new({"image": "x", "save": "y", "startup": {"commands": ["a"]}})
    assert "save" in text and "[startup]" in text
    assert 'save = "z"' in changed("f", text, ["save=z"], ())


@pytest.mark.parametrize(
    "change",
    [
        {"startup": {"commands": ["x"], "per": "task", "timeout_s": 1}},
        {"startup": {"commands": ["x"], "per": "node", "timeout_s": 1e9}},
        {"startup": {"commands": ["x"], "per": "node", "timeout_s": True}},
        {"startup": {"commands": "x", "per": "node", "timeout_s": 1}},
        {"startup": []},
        {"save": {"file": "/x", "name": "y", "store": "", "env": {}, "entrypoint": [], "workdir": None, "labels": {}}},
        {"save": {"file": "x", "name": "", "store": "", "env": {}, "entrypoint": [], "workdir": None, "labels": {}}},
        {"save": {"file": "", "name": "", "store": "", "env": {}, "entrypoint": [], "workdir": None, "labels": {}}},
        {"save": {"file": "/x"}},
    ],
)
def test_a_node_refuses_what_no_submission_made(change: dict[str, object]) -> None:
    import json

    value = json.loads(Definition("x").to_json())
    with pytest.raises(PioletError):
        from_json(json.dumps({**value, **change}).encode())


def test_an_image_that_cannot_be_had_is_the_only_thing_that_is_said(host: Host, tmp_path: Path) -> None:
    """Not that there is none: what needs one has it in the file."""

    def gone(_: str) -> ImageInfo:
        raise ImageError("the image service does not answer")

    (tmp_path / "x.toml").write_text(f'{IMAGE}save = "kept:1"\n{STARTUP}')
    with pytest.raises(PioletError, match="does not answer") as caught:
        render("./x.toml", host, EnvironmentConfig(edf_path=()), gone)
    assert caught.value.others == ()
