"""Manual pages and completion: they say what the programs say, and are well-formed."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from piolet.environment import edf
from piolet.vet import protocol

from tools import manpages

needs_lowdown = pytest.mark.skipif(shutil.which("lowdown") is None, reason="lowdown is not installed")


def words(name: str) -> str:
    """Return a page as text, without what roff escapes."""
    text = (manpages.MAN / name).read_text("utf-8")
    return text.replace("\\-", "-").replace("\\(cq", "'").replace("\\(dq", '"')


@needs_lowdown
def test_the_pages_are_those_that_would_be_written_now() -> None:
    """`make man` writes them anew."""
    made = manpages.pages()
    assert sorted(path.name for path in manpages.MAN.iterdir()) == sorted(made)
    for name, text in made.items():
        assert (manpages.MAN / name).read_text("utf-8") == text, f"{name} is out of date: make man"


def test_the_completion_is_the_one_that_would_be_written_now() -> None:
    for name, text in manpages.completion().items():
        assert (manpages.COMPLETION / name).read_text("utf-8") == text, f"{name} is out of date: make man"


def test_every_command_and_option_is_there() -> None:
    """What a person may type; what only plugins call is not."""
    text = words("piolet.1")
    for name, sub in manpages.subcommands(manpages.piolet_parser()).items():
        for action, parser in (manpages.subcommands(sub) or {"": sub}).items():
            assert f"piolet {name} {action}".strip() in text or f"PIOLET {name.upper()}" in text
            for option in [one for each in parser._actions for one in each.option_strings]:
                assert option in text or option in ("-h", "--help"), option
    assert "--result-fd" not in text and "--record-fd" not in text and "piolet central ended" not in text


def test_every_key_of_a_file_is_there() -> None:
    text = words("edf.5")
    assert not [key for key in edf.KEYS if key not in text]
    text = words("vet-protocol.5")
    keys = [*protocol._PROTOCOL_KEYS, *protocol._EVAL_KEYS]
    # Written by vetnode's protocols, and without a meaning here.
    assert not [key for key in keys if key not in text and key != "scheduler"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", sorted(path.name for path in manpages.MAN.iterdir()))
def test_roff_has_no_complaint(name: str) -> None:
    text = (manpages.MAN / name).read_text("utf-8")
    if text.startswith(".so "):  # another page, by its place where it is installed
        section, _, page = text.split()[1].partition("/")
        assert section == f"man{name[-1]}" and (manpages.MAN / page).is_file()
        return
    done = subprocess.run(
        ["groff", "-k", "-t", "-man", "-Tutf8", "-ww", "-z", str(manpages.MAN / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes() -> None:
    script = (
        f"source {manpages.COMPLETION / 'piolet.bash'}; COMP_WORDS=(piolet vet ''); COMP_CWORD=2; "
        "_shtab_piolet; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert {"check", "list", "run", "why"} <= set(done.stdout.split()), done
    assert "gate" not in done.stdout
