"""What a file of CSCS' container engine does here otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from piolet.environment import cscs

from tests.unit.environment.rendering import INFO, Render

AS_THERE = """entrypoint = true
home = false
script = "inside"
[annotations]
com.hooks.cxi.enabled = "true"
com.hooks.slurm.enabled = "true"
"""


def differences(made: Render, text: str, *, home: bool = True, port: bool = False, always: tuple[str, ...] = ()) -> str:
    return "\n".join(cscs.differences(made(text), always=always, home=home, port=port))


def test_a_file_that_does_the_same(made: Render) -> None:
    assert differences(made, f'image = "img"\n{AS_THERE}') == ""
    assert differences(made, '[env]\nA = "b"\n') == "", "without an image there is no container"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("entrypoint = true", "write entrypoint = true"),
        ("home = false", "write home = false"),
        ('script = "inside"', 'write script = "inside"'),
        ('com.hooks.cxi.enabled = "true"', "write com.hooks.cxi.enabled"),
        ('com.hooks.slurm.enabled = "true"', "unless com.hooks.slurm.enabled"),
    ],
)
def test_what_is_on_there_by_itself(made: Render, line: str, said: str) -> None:
    text = f'image = "img"\n{AS_THERE}'
    (found,) = cscs.differences(made(text.replace(line, "")), always=(), home=True, port=False)
    assert said in found


def test_what_the_site_or_the_image_has_settled(made: Render) -> None:
    assert "home" not in differences(made, 'image = "img"\n', home=False)
    said = differences(made, 'image = "img"\n', always=("cxi", "slurm"))
    assert "cxi" not in said and "Slurm" not in said
    rendered = made('image = "img"\n', info=replace(INFO, entrypoint=()))
    assert "entrypoint" not in "".join(cscs.differences(rendered, always=(), home=True, port=True))
    nccl = made('image = "img"\n[annotations]\ncom.hooks.aws_ofi_nccl.variant = "cuda12"\n')
    assert "cxi" not in "".join(cscs.differences(nccl, always=(), home=True, port=True)), "it implies that"


def test_variables_of_enroot_and_of_nvidia(made: Render) -> None:
    env = {"ENROOT_SLURM_HOOK": "0", "ENROOT_LOGIN_SHELL": "no", "NVIDIA_DRIVER_CAPABILITIES": "all", "OTHER": "x"}
    table = "".join(f'{name} = "{value}"\n' for name, value in env.items())
    said = differences(made, f'image = "img"\n{AS_THERE}[env]\n{table}').splitlines()
    assert [line.partition(": ")[2].partition(" ")[0] for line in said] == list(env)[:3]
    assert "x.toml:9: ENROOT_SLURM_HOOK" in said[0] and "com.hooks.slurm.enabled" in said[0]


def test_variables_that_the_image_has_are_the_host_s_here(made: Render) -> None:
    text = f'image = "img"\nworkdir = "${{HOME}}"\nmounts = ["/tmp:/x$${{PATH}}"]\n{AS_THERE}[env]\nP = "${{PATH}}"\n'
    (said,) = differences(made, text).splitlines()
    assert "x.toml:2: ${HOME} is the image's there" in said


def test_ssh_has_another_port(made: Render) -> None:
    ssh = 'com.hooks.ssh.enabled = "true"\n'
    assert "15263" in differences(made, f'image = "img"\n{AS_THERE}{ssh}')
    allowed = f'image = "img"\n{AS_THERE}{ssh}com.hooks.ssh.port = "15263"\n'
    assert differences(made, allowed, port=True) == ""
