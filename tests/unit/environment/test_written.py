"""Definition files that are written and changed."""

from __future__ import annotations

import tomllib

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.environment import written

TEXT = """# mine
image = "a"   # the image

mounts = ["/a:/b"]

[env]   # variables
A = "1"

[annotations.com.hooks.ssh]
enabled = "true"
"""


def test_a_new_file() -> None:
    data = {"env": {"A": "1"}, "image": "ubuntu", "mounts": ["/a", "/b:/c"], "writable": False}
    text = written.new(data, ["a comment"])
    assert text.startswith("# a comment\nimage = ")
    assert tomllib.loads(text) == data


def test_comments_and_order_stay() -> None:
    text = written.changed(
        "/x.toml",
        TEXT,
        ["image=b", "workdir=/w", "mount=/c:/d:ro", "mount=/a:/b", "env=B=2", "annotation=com.hooks.ssh.port=22"],
        [],
    )
    for line in ("# mine", '"b"   # the image', "[env]   # variables"):
        assert line in text
    assert tomllib.loads(text) == {
        "image": "b",
        "workdir": "/w",
        "mounts": ["/a:/b", "/c:/d:ro"],
        "env": {"A": "1", "B": "2"},
        "annotations": {"com": {"hooks": {"ssh": {"enabled": "true", "port": "22"}}}},
    }
    assert text.index("workdir") < text.index("[env]")


def test_what_is_removed() -> None:
    text = written.changed("/x.toml", TEXT, [], ["image", "env.A", "mount=/a:/b"])
    assert tomllib.loads(text)["env"] == {}
    assert not {"mounts", "image"} & tomllib.loads(text).keys()
    for word in ("image", "env.B", "mount=/x", "nonsense"):
        with pytest.raises(EnvironmentFileError, match=f"there is no '{word}' to remove"):
            written.changed("/x.toml", '[env]\nA = "1"\n', [], [word])


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (TEXT, ["imge=x"], "unknown key 'imge'"),
        (TEXT, ["image"], "'image' is not KEY=VALUE"),
        (TEXT, ["writable=maybe"], "writable must be true or false, not 'maybe'"),
        (TEXT, ["env=SLURM_X=1"], "SLURM_X belongs to the step"),
        ("imgae = 'x'\n", ["image=x"], "unknown key 'imgae'"),
        ("= 1\n", ["image=x"], "not valid TOML"),
        ("mounts = 'x'\n", ["mount=/a"], "mounts must be an array of strings"),
    ],
)
def test_nothing_wrong_is_written(text: str, words: list[str], message: str) -> None:
    with pytest.raises(EnvironmentFileError, match=message):
        written.changed("/x.toml", text, words, [])
