"""All that is wrong with a file is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import ImageInfo
from piolet.submission.dependencies import Host

from tests.unit.environment.rendering import Render, refusal


def test_everything_that_is_wrong_is_said_at_once(made: Render, tmp_path: Path) -> None:
    error = refusal(
        made,
        'base_environment = "./base.toml"\nimgae = "img"\nwritable = 1\nmounts = ["/nowhere-at-all", "x:/y", "/tmp"]\n'
        'workdir = "w"\ndevices = ["d"]\n[env]\nSLURM_X = "1"\nimage = "y"\n[annotations]\nworkdir = "z"\na.b = []\n',
        base='entrypoint = "true"\n',
    )
    every = [error, *error.others]
    said = [(Path(e.location.path).name, e.location.line, e.message.split(",")[0]) for e in every if e.location]
    assert said == [
        ("x.toml", 2, "unknown key 'imgae'"),
        ("x.toml", 3, "writable must be true or false"),
        ("x.toml", 4, "the source of the mount"),
        ("x.toml", 4, "the source 'x' of the mount is not an absolute path"),
        ("x.toml", 5, "workdir 'w' is not an absolute path"),
        ("x.toml", 6, "'d' is not a device"),
        ("x.toml", 8, "SLURM_X belongs to the step"),
        ("x.toml", 9, "'image' stands in the table [env]"),
        ("x.toml", 11, "'workdir' stands in the table [annotations]"),
        ("x.toml", 12, "annotations.a.b must be a string"),
        ("base.toml", 1, "entrypoint must be true or false"),
    ]
    assert len(said) == len(every)


def test_nobody_asks_a_registry_for_a_file_that_is_wrong(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('image = "img"\nworkdir = "w"\n[env]\nA = "${OF_THE_IMAGE}"\n')

    def resolve(reference: str) -> ImageInfo:
        raise AssertionError(reference)

    with pytest.raises(EnvironmentFileError) as caught:
        render("./x.toml", host, EnvironmentConfig(), resolve)
    assert caught.value.message == "workdir 'w' is not an absolute path"
    assert caught.value.others == ()


def test_too_much_that_is_wrong_is_cut(made: Render) -> None:
    error = refusal(made, 'image = "img"\nmounts = [' + '"x", ' * 1000 + "]\n")
    assert len(error.others) == 19
