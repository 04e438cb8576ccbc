"""Values of `[env]` that look like secrets are neither printed nor kept; the step gets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from piolet.cli import main as cli
from piolet.environment import secrets
from piolet.environment.definition import from_json

from tests.unit.cli.conftest import Captured, age
from tests.unit.cli.test_env import submitted

VALUE = "hf-abcdef123456"
FILE = f"""\
image = "img"
[env]
HF_TOKEN = "{VALUE}"
WANDB_API_KEY = "${{WANDB_API_KEY}}"
DB_PASSWORD_FILE = "x-{VALUE}-y"
PLAIN = "seen"
"""


@pytest.fixture
def secret(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_API_KEY", f"from the host {VALUE}")
    (work / "s.toml").write_text(FILE)
    age(work)
    return work


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("HF_TOKEN", True), ("hf_token", True), ("TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("SECRETS", True),
        ("MYSQL_PASSWORD", True), ("PASSWORD_FILE", True), ("API_KEY", True), ("KEYBOARD", False), ("MONKEY", False),
        ("TOKENIZERS_PARALLELISM", False), ("SSH_KEY_PATH", False), ("PATH", False), ("", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, is_one: bool) -> None:
    assert secrets.is_secret(name) is is_one


@pytest.mark.parametrize("action", ["check", "render", "explain"])
def test_nothing_that_is_printed_has_the_value(secret: Path, capfd: pytest.CaptureFixture[str], action: str) -> None:
    assert cli.main(["env", action, "s.toml"]) == 0
    out, err = capfd.readouterr()
    assert VALUE not in out + err
    if action == "render":
        env = json.loads(out)["set_env"]
        assert env["HF_TOKEN"] == env["WANDB_API_KEY"] == secrets.HIDDEN and env["PLAIN"] == "seen"
    if action == "explain":
        assert f"# HF_TOKEN is set ({secret}/s.toml:3), and its value is not shown" in out
        assert 'WANDB_API_KEY = "${WANDB_API_KEY}"' in out and 'PLAIN = "seen"' in out
        (secret / "again.toml").write_text(out)
        assert cli.main(["env", "check", "again.toml"]) == 0, "what explain prints is a definition file"


def test_the_step_gets_it_and_the_cache_does_not(secret: Path) -> None:
    status, record, cached = submitted(secret, request="./s.toml")
    assert status == 0 and cached == []
    env = from_json(record[record.index(b'{"annotations"') :]).set_env
    assert env["HF_TOKEN"] == VALUE and env["WANDB_API_KEY"] == f"from the host {VALUE}"
    assert not [path for path in (secret / "home").rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()]


def test_a_secret_of_the_host_that_is_part_of_another_value_is_not_kept(secret: Path) -> None:
    (secret / "s.toml").write_text('image = "img"\n[env]\nURL = "https://x?${WANDB_API_KEY}"\n')
    age(secret)
    assert submitted(secret, request="./s.toml")[2] == []


@pytest.mark.parametrize(
    "wrong",
    [
        f'HF_TOKEN = "{VALUE}" x',
        f"HF_TOKEN = {VALUE}",
        f"HF_TOKEN = ['{VALUE}']",
        f'HF_TOKEN = "${{NOWHERE}}{VALUE}"',
        f'HF_TOKEN = "{VALUE}"\nHF_TOKEN = "{VALUE}"',
        f'"HF_TOKEN" = "{VALUE}',
    ],
)
def test_no_error_shows_the_line_with_it(secret: Path, capsys: Captured, wrong: str) -> None:
    (secret / "s.toml").write_text(f'image = "img"\n[env]\n{wrong}\n')
    assert cli.main(["env", "check", "s.toml"]) == 1
    said = capsys.readouterr().err
    assert VALUE not in said and secrets.HIDDEN in said, said
