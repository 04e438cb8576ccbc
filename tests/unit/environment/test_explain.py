"""What `piolet env explain` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from piolet.environment.explain import explain
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.submission.dependencies import Host

from tests.unit.environment.rendering import INFO, Render


def test_explain_names_the_origin_of_every_value(made: Render, tmp_path: Path) -> None:
    rendered = made(
        'base_environment = "./b.toml"\nmounts = ["tmpfs:/t:ro", "/tmp:/x"]\n'
        '[env]\nA = "${USER}"\nC = ""\n"odd key" = "$${x}"\n',
        b='image = "img"\nworkdir = "/w"\ndevices = ["/dev/fuse"]\n[env]\nA = "1"\nB = "2"\n[annotations]\na.b = "c"\n',
    )
    text = explain(rendered)
    lines = [line.split(None, 1)[0] + " " + line.split("  # ")[-1] for line in text.splitlines() if "  # " in line]
    b, x = f"{tmp_path}/b.toml", f"{tmp_path}/x.toml"
    assert lines == [
        f"image {b}:1",
        f"workdir {b}:2",
        "entrypoint default",
        "writable default",
        "remap_root default",
        "env_policy default",
        "script default",
        f'"tmpfs:/t:ro", {x}:2',
        f'"/tmp:/x", {x}:2',
        f'"/dev/fuse", {b}:3',
        "PATH from the image",
        "LANG from the image",
        f'A {x}:4, written "${{USER}}"',
        f"B {b}:6",
        f"C {x}:5, unset",
        f'"odd {x}:6, written "$${{x}}"',
        f'"a.b" {b}:8',
    ]


def test_what_explain_prints_means_the_same(made: Render, host: Host, tmp_path: Path) -> None:
    first = made(
        'image = "img"\nhome = false\nmounts = ["!/etc/hosts", "/tmp:/a:ro", \'/tmp:/b\\:c\']\n[env]\n'
        'A = "$${x} \\" \\\\ \\u007f é"\nB = ""\n'
        '[annotations]\nx.y = "1"\n"odd key" = "2"\n'
    ).definition
    (tmp_path / "again.toml").write_text(explain(made((tmp_path / "x.toml").read_text())))
    again = render("./again.toml", host, EnvironmentConfig(), lambda _: INFO).definition

    def meaning(data: bytes) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(data)
        return {key: item for key, item in value.items() if key not in ("request", "files", "workdir_given")}

    assert meaning(again.to_json()) == meaning(first.to_json())
    assert "runs on the host" in explain(made('[env]\nA = "1"\n'))
