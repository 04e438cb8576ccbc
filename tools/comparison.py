"""Writes docs/comparison.md: what users of other container tools for Slurm know, and what it is here.

    python -m tools.comparison

A row names the tests that hold it; one without a test says "not done", whatever its text says. Sources, read
2026-11-29: CSCS, container engine (EDF reference, running, hooks, known issues, Sarus Suite); pyxis, README and its
options; SchedMD, srun(1) and oci.conf(5).
"""

from __future__ import annotations

from pathlib import Path

from tools.comparison_sarus import SARUS
from tools.comparison_thing import NOT_DONE, Thing, row

__all__ = ["NOT_DONE", "PAGE", "TABLES", "Thing", "page"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "comparison.md"
SCRIPTS = "tests/cluster/test_scripts.py"
CONTAINER, BATCH, MOUNTS = (
    "tests/cluster/test_container.py",
    "tests/cluster/test_batch.py",
    "tests/cluster/test_mounts.py",
)
HOOKS, IMAGES, TASKS = "tests/cluster/test_hooks.py", "tests/cluster/test_images.py", "tests/cluster/test_tasks.py"
PINNED, USERS, SIGNATURES = (
    "tests/cluster/test_pinned.py",
    "tests/images/test_users.py",
    "tests/images/test_signatures.py",
)
IDENTITY, KNOWN = "tests/cluster/test_identity.py", "tests/unit/hooks/test_known.py"
EDF, RENDER = "tests/unit/environment/test_edf.py", "tests/unit/environment/test_render.py"
AROUND, FOREIGN = "tests/cluster/test_surroundings.py", "tests/unit/environment/test_foreign.py"
KEEP, STARTUP = "tests/cluster/test_keep.py", "tests/cluster/test_startup.py"
LOOKUP = "tests/unit/environment/test_lookup.py"


CSCS = (
    row("`srun --environment`", "the same", f"{CONTAINER}::test_mounts"),
    row(
        "`#SBATCH --environment`",
        "inner sruns run inside, the script on the host",
        f"{BATCH}::test_the_script_runs_on_the_host_and_its_sruns_inside",
    ),
    row(
        "`#SBATCH --environment`: the script itself in the container",
        '`script = "inside"`, in the file or as the site\'s default',
        f"{SCRIPTS}::test_a_script_runs_inside",
        f"{SCRIPTS}::test_the_site_may_say_so_for_all",
        "tests/cluster/test_scripts_inside.py::test_arrays",
        "tests/cluster/test_scripts_inside.py::test_parts_of_a_heterogeneous_job",
        "tests/cluster/test_scripts_inside.py::test_a_requeue",
    ),
    row(
        "an `srun --environment` inside such a script",
        "steps have the script's environment, none (`--environment=none`), or another one, with the hook `slurm`",
        f"{SCRIPTS}::test_sruns_from_inside_are_in_the_environment",
        f"{HOOKS}::test_an_environment_that_is_named_inside",
    ),
    row(
        "`EDF_PATH`, `~/.edf`, the system's EDFs",
        "the same",
        f"{LOOKUP}::test_edf_path_replaces_the_default_and_its_order_counts",
    ),
    row("`EDF_IMAGESTORE`", "a user's own store", f"{IMAGES}::test_a_users_own_store"),
    row(
        "`EDF_IMAGESTORE` that a project shares",
        "by `EDF_IMAGESTORE_GROUP`, for those who believe each other",
        f"{IMAGES}::test_a_store_of_a_group",
    ),
    row(
        "`base_environment`", "the same", f"{EDF}::test_bases_come_first_and_later_files_win", f"{EDF}::test_ten_levels"
    ),
    row(
        "a file that was written for it",
        "runs as it is; `piolet env check --from=cscs FILE` names what it does otherwise here",
        "tests/unit/environment/test_cscs.py::test_what_is_on_there_by_itself",
        "tests/unit/cli/test_env.py::test_check_of_a_file_of_cscs",
    ),
    row(
        "`image`",
        "the same, `REGISTRY#IMAGE` too; `.sqsh` files",
        f"{IMAGES}::test_forms_of_images",
        f"{IMAGES}::test_the_way_of_writing_with_a_hash",
        f"{CONTAINER}::test_squashfs_files",
    ),
    row("`workdir`", "the same", f"{CONTAINER}::test_working_directories"),
    row("`entrypoint`", "the same, but `false` unless it is set", f"{CONTAINER}::test_entrypoints"),
    row(
        "`writable`",
        "the same",
        f"{CONTAINER}::test_a_writable_root_is_of_one_step_and_node",
        f"{CONTAINER}::test_a_root_that_is_not_writable",
    ),
    row(
        "`mounts`",
        "the same; `tmpfs:`, `!DST`",
        f"{CONTAINER}::test_mounts",
        f"{RENDER}::test_mounts_are_dropped_replaced_and_kept_in_order",
    ),
    row("mount flag `sqsh`", "the same", f"{CONTAINER}::test_squashfs_files"),
    row(
        "mount flag `x-create`",
        "the same; without it nothing is made in what is mounted",
        f"{MOUNTS}::test_x_create_makes_the_mount_point",
    ),
    row(
        "mount flags `ro`, `rw`, `private`, `shared`, `slave` and others, joined by `+`",
        "the same, and `,`",
        "tests/unit/environment/test_mounts.py::test_every_flag_alone",
    ),
    row(
        "relative paths (`./x`)",
        "the same: relative to the working directory",
        f"{RENDER}::test_a_relative_workdir_is_below_the_working_directory",
        f"{RENDER}::test_an_image_file_is_made_absolute",
    ),
    row("`[env]`", "the same", f"{CONTAINER}::test_variables"),
    row(
        "`[env]` with an empty value",
        "the same: the variable is unset",
        f"{CONTAINER}::test_variables",
    ),
    row("`[annotations]`", "the same", f"{RENDER}::test_annotations_are_texts"),
    row(
        "`${VAR}` in values",
        "the same, with defaults; of the image's variables in `[env]` only",
        "tests/unit/environment/test_expand.py::test_forms",
    ),
    row(
        '`devices = ["nvidia.com/gpu=all"]`, CDI',
        "the same, without running CDI's hooks",
        f"{HOOKS}::test_devices_by_name_and_by_what_an_image_says",
        "tests/unit/hooks/test_cdi.py::test_what_nvidia_ctk_writes_becomes_entries",
        untested="a GPU",
    ),
    row(
        "`NVIDIA_DRIVER_CAPABILITIES`",
        "no effect: all of the driver is mounted, and `env check --from=cscs` says so",
        "tests/unit/environment/test_cscs.py::test_variables_of_enroot_and_of_nvidia",
    ),
    row("`NVIDIA_REQUIRE_…`", "an image that wants a newer driver is refused"),
    row(
        "`NVIDIA_VISIBLE_DEVICES` of the image",
        "the node's driver is mounted",
        f"{HOOKS}::test_devices_by_name_and_by_what_an_image_says",
        untested="a GPU",
    ),
    row(
        "AMD's GPUs",
        "`amd.com/gpu=…` by CDI",
        "tests/unit/hooks/test_cdi.py::test_amd_s_devices_by_the_same_code",
        untested="a GPU",
    ),
    row("`com.hooks.cxi`", "the hook `cxi`", f"{KNOWN}::test_slingshot_from_the_node", untested="Slingshot"),
    row(
        "`com.hooks.aws_ofi_nccl`",
        "the hook `aws_ofi_nccl`",
        f"{KNOWN}::test_nccl_over_slingshot_switches_cxi_on_and_is_required_with_it",
        untested="Slingshot",
    ),
    row(
        "`com.hooks.netstack`",
        "the hook `netstack`",
        f"{KNOWN}::test_a_network_stack_of_the_site_s",
        untested="Slingshot",
    ),
    row(
        "`com.hooks.ssh`",
        "the hook `ssh`, without a port unless the site allows one",
        f"{KNOWN}::test_ssh_has_no_port_of_its_own",
        f"{KNOWN}::test_ssh_listens_where_the_site_allows_it",
        f"{HOOKS}::test_ssh_through_srun",
    ),
    row(
        "`com.hooks.nvidia_cuda_mps`",
        "the hook `nvidia_cuda_mps`",
        f"{KNOWN}::test_mps_runs_as_long_as_the_step",
        untested="a GPU",
    ),
    row(
        "`com.hooks.dcgm` (jobreport, gssr)",
        "the hook `dcgm`",
        f"{KNOWN}::test_dcgm_s_libraries_are_found",
        untested="a GPU",
    ),
    row(
        "`com.hooks.….enabled` that the site switches on by itself",
        "`[hooks] always`",
        "tests/unit/hooks/test_hooks.py::test_what_annotations_ask_for",
    ),
    row(
        "`ENROOT_SLURM_HOOK`, `ENROOT_LOGIN_SHELL` in `[env]`",
        "no effect, which `env check --from=cscs` says; Slurm's commands are the hook `slurm`",
        "tests/unit/environment/test_cscs.py::test_variables_of_enroot_and_of_nvidia",
    ),
    row("Slurm's commands inside", "the hook `slurm`", f"{HOOKS}::test_slurm_inside_whatever_the_image_is"),
    row("`com.pyxis.pytorch_remap_vars`", "the same", f"{HOOKS}::test_every_rank_of_pytorch_has_its_variables"),
    row("`com.pyxis.entrypoint_log`", "an entrypoint's output is always seen", f"{CONTAINER}::test_entrypoints"),
    row(
        "PMIx",
        "slurmd's spool directory is mounted, with the step's server directory in it",
        "tests/cluster/test_mpi.py::test_open_mpi_by_pmix",
        f"{AROUND}::test_slurmd_s_spool_directory_is_there_for_pmix",
    ),
)
PYXIS = (
    row(
        "`--container-image`",
        "`image`, or `--environment=image:REF` without a file",
        f"{IMAGES}::test_forms_of_images",
        f"{AROUND}::test_an_image_alone_and_what_is_said_on_top",
    ),
    row(
        "a job's script with these options",
        "`piolet env from-pyxis SCRIPT` makes a definition file of it",
        f"{FOREIGN}::test_a_script_of_pyxis",
    ),
    row(
        "`PYXIS_CONTAINER_IMAGE`, `PYXIS_CONTAINER_MOUNTS` and the others",
        "`from-pyxis` reads them in a script; there are no variables of this kind",
        f"{FOREIGN}::test_variables_of_pyxis",
    ),
    row(
        "mounts `tmpfs:DST`, `umount:DST`",
        "`tmpfs:DST`, `!DST`",
        f"{AROUND}::test_an_image_alone_and_what_is_said_on_top",
        f"{FOREIGN}::test_variables_of_pyxis",
    ),
    row(
        "mount flags `x-create=dir`, `=file`, `=auto`",
        "`x-create`",
        "tests/unit/environment/test_mounts.py::test_grammar",
        f"{MOUNTS}::test_x_create_makes_the_mount_point",
    ),
    row(
        "`enroot import`, `create`, `start`",
        "`piolet env from-enroot SCRIPT` makes a definition file of it",
        f"{FOREIGN}::test_a_script_of_enroot",
    ),
    row("`--container-mounts`", "`mounts`", f"{CONTAINER}::test_mounts"),
    row(
        "`--container-workdir`",
        "`workdir`, or `--chdir`",
        f"{CONTAINER}::test_working_directories",
        f"{AROUND}::test_srun_s_chdir",
    ),
    row(
        "`--container-writable`, `--container-readonly`", "`writable`", f"{CONTAINER}::test_a_root_that_is_not_writable"
    ),
    row("`--container-entrypoint`, `--no-container-entrypoint`", "`entrypoint`", f"{CONTAINER}::test_entrypoints"),
    row("`--container-entrypoint-log`", "an entrypoint's output is always seen", f"{CONTAINER}::test_entrypoints"),
    row(
        "`--container-mount-home`, `--no-container-mount-home`",
        "`home`, else the site's `mount_home`; a mount of one's own takes its place",
        f"{IDENTITY}::test_home_is_there_and_their_own",
        f"{AROUND}::test_an_image_alone_and_what_is_said_on_top",
    ),
    row(
        "`--container-env`",
        "the host's variables are there unless the image or `[env]` sets them",
        f"{CONTAINER}::test_variables",
    ),
    row(
        "`--container-remap-root`",
        "`remap_root`; every file is root's, and who becomes another user stays root",
        "tests/cluster/test_remap_root.py::test_inside_root_and_outside_the_user",
        "tests/cluster/test_remap_root.py::test_apt_installs",
    ),
    row(
        "`--container-name`: a step in the container of another",
        "`piolet attach JOB.STEP`, `--environment=job:JOB.STEP`; it ends with its step, and is kept for no later one",
        "tests/cluster/test_attach.py::test_it_is_the_same_container",
    ),
    row(
        "`enroot exec PID`",
        "`piolet attach JOB.STEP COMMAND`: by its step, in the step's limits, also at a terminal",
        "tests/cluster/test_attach.py::test_processes_of_the_step_are_seen_and_ended",
        "tests/cluster/test_attach.py::test_a_terminal",
    ),
    row(
        "`--container-save`",
        "`save` in the definition file, at the step's end; `piolet env save JOB.STEP NAME|FILE.sqsh` while it runs",
        f"{KEEP}::test_save_at_the_end",
        f"{KEEP}::test_a_running_step_becomes_a_file",
    ),
    row(
        "`enroot import`: a `.sqsh` file's `/etc/environment`, `/etc/rc`, `/etc/fstab`",
        "read and never run: variables, working directory, entrypoint; volumes need no mount",
        f"{PINNED}::test_a_file_that_enroot_made",
        "tests/unit/images/test_enroot.py::test_what_has_no_effect_is_told",
    ),
    row(
        "`~/.config/enroot/.credentials`",
        "the same, but a password that is a command is not run; docker's and podman's, credential helpers",
        f"{USERS}::test_credentials_of_enroot_and_of_a_helper",
        "tests/unit/images/test_credentials.py::test_a_password_that_is_a_command_is_told_of_and_not_run",
    ),
    row(
        "`ENROOT_TRANSFER_RETRIES`, enroot's cache of layers",
        "three further tries; layers that have come are kept for a day",
        "tests/images/test_resume.py::test_a_pull_that_broke_off_is_taken_up_where_it_was",
    ),
    row(
        "image's `ENROOT_*` hooks, `/etc/enroot/hooks.d`",
        "hooks of Python, `/etc/piolet/hooks.d`",
        f"{HOOKS}::test_a_site_s_hook",
    ),
    row(
        "`sbatch --container-image` (`sbatch_support`)",
        '`script = "inside"`',
        f"{SCRIPTS}::test_a_script_runs_inside",
    ),
    row(
        "multi-node MPI by PMI2 and PMIx",
        "as without a container",
        "tests/cluster/test_mpi.py::test_mpich_by_pmi2",
        "tests/cluster/test_mpi.py::test_open_mpi_by_pmix",
        f"{TASKS}::test_a_task_can_talk_to_its_pmi_server",
    ),
)
SLURM = (
    row("`--container=BUNDLE`", "`--environment=FILE`: no bundle has to be made first", f"{CONTAINER}::test_mounts"),
    row(
        "`--container-id`",
        "a container is called by its step: `job:JOB.STEP`",
        "tests/cluster/test_attach.py::test_of_two_steps_one_has_to_be_named",
    ),
    row(
        "`oci.conf`: `RunTimeCreate`, `RunTimeRun` and others",
        '`[environment] runtime = "crun"`',
        f"{CONTAINER}::test_mounts",
    ),
    row(
        "`oci.conf`: `EnvExclude`",
        "`[environment] stay_outside`, `env_policy`",
        "tests/unit/environment/test_variables.py::test_variables_of_the_host_that_point_at_nothing_inside",
        "tests/unit/environment/test_variables.py::test_a_clean_environment",
    ),
    row(
        "`oci.conf`: `MountSpoolDir`",
        "the spool directory is mounted by itself",
        f"{AROUND}::test_slurmd_s_spool_directory_is_there_for_pmix",
    ),
    row(
        "`oci.conf`: `CreateEnvFile`, `ContainerPath`, `DisableCleanup`, `IgnoreFileConfigJson`, `SrunPath` and others",
        "settings of bundles, of which there are none",
    ),
    row(
        "`sacct`'s field `Container`",
        "`piolet env show JOB`: the whole definition, the image by its digest",
        f"{PINNED}::test_a_jobs_environment_once_more",
    ),
    row("`scrun`: Slurm behind podman and docker", "nothing of the kind"),
)
TABLES = (
    ("CSCS' container engine", CSCS),
    ("CSCS' Sarus Suite with Podman (early access)", SARUS),
    ("pyxis and enroot", PYXIS),
    ("Slurm's `--container`", SLURM),
)


def page() -> str:
    """Return the page."""
    lines = [
        "# What users of other tools know, and what it is here",
        "",
        "Made by `python -m tools.comparison`: each row is held by the tests that it names; without one it is",
        "not done, and what stands there is what would be. What could not be tried for lack of hardware says so.",
    ]
    for title, things in TABLES:
        lines += ["", f"## {title}", "", "| there | here | held by |", "|---|---|---|"]
        lines += [f"| {thing.name} | {_here(thing)} | {_tests(thing)} |" for thing in things]
    return "\n".join(lines) + "\n"


def _here(thing: Thing) -> str:
    if not thing.tests:
        return f"**{NOT_DONE}**: {thing.here}"
    return thing.here + (f"; **untested with {thing.untested}**" if thing.untested else "")


def _tests(thing: Thing) -> str:
    return ", ".join(f"`{test}`" for test in thing.tests) or "-"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
