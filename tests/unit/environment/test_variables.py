"""The variables of a container, and which of the host's stay outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.submission.dependencies import Host, Kind

from tests.unit.environment.rendering import Render, refusal


def test_variables_of_image_and_file(made: Render) -> None:
    definition = made(
        'image = "img"\n[env]\nA = "${PATH}"\nB = "${HOME}"\nLANG = ""\nLC_TIME = "C"\nGONE = ""\n'
        'H = "$${PATH} $PATH"\n'
    ).definition
    assert definition.set_env == {
        "PATH": "/image/bin",
        "A": "/image/bin",
        "B": str(Path(definition.files[0]).parent),
        "LC_TIME": "C",
        "H": "${PATH} $PATH",
    }
    assert definition.unset_env[:2] == ("LANG", "GONE")
    assert {"LC_ALL", "LANGUAGE", "LC_CTYPE"} <= set(definition.unset_env)
    assert "LC_TIME" not in definition.unset_env
    assert len(set(definition.unset_env)) == len(definition.unset_env)


@pytest.mark.parametrize(
    ("value", "warning"),
    [
        ("$PATH:/x", "'$PATH' in env.A stays as it is, as no shell reads it (write ${PATH}, or $${PATH} for the "
         "characters themselves)"),
        ("~/hf", "'~' in env.A stays as it is, as no shell reads it (write ${HOME})"),
        ("/a:~/b", "'~' in env.A stays as it is, as no shell reads it (write ${HOME})"),
        ("$SLURM_CPUS_PER_TASK", "'$SLURM_CPUS_PER_TASK' in env.A stays as it is, as no shell reads it (it is known "
         "when the step begins: set the variable in the job's script)"),
        ("$(nproc)", "'$(' in env.A stays as it is, as no shell reads it (no command is run; set it in the "
         "job's script)"),
        ("$${PATH}", None), ("cost: 5$", None), ("${USER}", None), ("a~b", None), ("/x~/y", None), ("$$PATH", None),
    ],
)  # fmt: skip
def test_what_a_shell_would_replace_in_a_variable_is_a_warning(
    made: Render, tmp_path: Path, value: str, warning: str | None
) -> None:
    rendered = made(f'image = "img"\n[env]\nA = "{value}"\n')
    assert rendered.warnings == ((f"{tmp_path}/x.toml:3: {warning}",) if warning else ())


def test_variables_of_the_host_that_point_at_nothing_inside(made: Render, host: Host) -> None:
    host.variables |= {"LD_PRELOAD": "/host/lib.so", "CONDA_PREFIX": "/host/conda", "LD_LIBRARY_PATH": "/host/lib"}
    host.variables |= {"VIRTUAL_ENV": "", "MINE": "x"}
    rendered = made('image = "img"\n[env]\nLD_LIBRARY_PATH = "/image/lib"\n')
    unset = set(rendered.definition.unset_env)
    assert {"LD_PRELOAD", "CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONHOME", "BASH_ENV"} <= unset
    assert not unset & {"LD_LIBRARY_PATH", "MINE", "PATH"}
    assert rendered.once == (
        "variables of the host stay outside the container, as what they name is not there: LD_PRELOAD, CONDA_PREFIX; "
        "[env] sets what the image needs",
    )
    assert rendered.warnings == ()
    # The definition is the same whatever the host has; but who has one for the first time is to be warned.
    noted = {dependency.name: dependency.kind for dependency in host.dependencies}
    assert "LD_PRELOAD" not in noted
    assert noted["PYTHONHOME"] == Kind.UNSET
    assert made("[env]\nA = '1'\n").definition.unset_env == ()


def test_a_clean_environment(made: Render, host: Host) -> None:
    host.variables |= {"MINE": "x", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0", "TERM": "xterm", "odd\udcff": "x"}
    text = 'image = "img"\nenv_policy = "clean"\n[env]\nB = "${MINE}"\n'
    rendered = made(text)
    unset = set(rendered.definition.unset_env)
    assert "MINE" in unset
    assert not unset & {"SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "TERM", "HOME", "USER", "PATH", "odd\udcff"}
    assert rendered.definition.set_env["B"] == "x"
    assert rendered.passing
    assert not made('image = "img"\nenv_policy = "inherit"\n').passing
    assert refusal(made, 'env_policy = "none"\n').message == "env_policy must be 'inherit' or 'clean', not 'none'"
