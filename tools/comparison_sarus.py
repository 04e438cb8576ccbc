"""Rows of docs/comparison.md: what CSCS' early-access guide to Sarus Suite documents, read 2026-11-29."""

from __future__ import annotations

from tools.comparison_thing import row

SARUS = (
    row("`--edf=NAME`", "`--environment=NAME`", "tests/cluster/test_container.py::test_mounts"),
    row(
        "`sarusctl validate`, `render`",
        "`piolet env check`, `render`, `explain`",
        "tests/unit/cli/test_env.py::test_check",
        "tests/unit/environment/test_render.py::test_a_whole_definition_survives_its_own_reader",
    ),
    row(
        "`sarusctl pull`, `images`, `rmi`",
        "`piolet image pull`, `list`, `rm`",
        "tests/images/test_own_store.py::test_the_command_line",
    ),
    row(
        "`sarusctl migrate`: an image of podman's",
        "`podman save`, then `piolet image import`",
        "tests/images/test_own_store.py::test_imports",
    ),
    row("`sarusctl run`: a container without Slurm", "a step; `srun` starts it"),
    row(
        "`devices` of CDI, also `alps.cscs/…`",
        "the same, where the specifications have no hooks but nvidia-ctk's",
        "tests/unit/hooks/test_cdi.py::test_what_nvidia_ctk_writes_becomes_entries",
        "tests/unit/hooks/test_cdi.py::test_a_hook_that_cannot_be_replaced_makes_its_devices_an_error",
        untested="such a device",
    ),
    row("Bash's expansion in files", "`${VAR}`, `${VAR:-text}` and nothing else, on purpose"),
    row(
        "`com.sarus.…`: settings and `perfmon`",
        "a warning; with `[node] verbose` pioletd's log has where a start spent its time",
        "tests/unit/hooks/test_hooks.py::test_warnings_when_a_job_is_submitted",
    ),
)
