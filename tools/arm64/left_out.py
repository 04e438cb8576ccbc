"""Tests that qemu-user cannot run: the start of their names, and why. What they test is tested on x86-64.

What is said to be of the kernel's is tested in the guests as well, as far as it differs by architecture.
"""

from __future__ import annotations

_THREAD = "it makes a user namespace, which the kernel denies to a process with two threads; qemu-user's have one more"
_CREDENTIALS = "qemu-user does not pass on SIOCUNIXFILE, by which the server knows who connected"
_CALLS = "qemu-user does not know mount_setattr, open_tree and move_mount"
_NAMESPACES = (
    "it enters mount namespaces, which the kernel denies to a process with two threads, or asks ioctl_ns(2) of them,"
    " which qemu-user does not pass on"
)
_TIME = "it goes by a few seconds, and takes more than those here"

REASONS: dict[str, str] = {
    "tests/wire/test_command.py::test_the_command_ignores_what_srun_was_started_to_ignore": (
        "/proc/PID/status shows the handlers that qemu-user has for itself"
    ),
    "tests/wire/test_launcher.py::test_the_descriptor_of_the_own_program_becomes_the_entry_program": (
        "qemu-user answers readlink and open of /proc/self/exe itself, and not of the descriptor"
    ),
    "tests/wire/test_entry.py": "qemu-user lets no process filter its system calls",
    "tests/wire/test_trust.py": _CREDENTIALS,
    "tests/wire/test_fuzz.py": "a hundred thousand inputs take an hour, and AddressSanitizer's shadow is not mapped",
    "tests/unit/doctor/": _THREAD,
    "tests/unit/images/test_bounds.py::test_too_little_memory_is_an_error_and_no_killed_service": (
        "it bounds memory, and qemu-user does not hand that bound on"
    ),
    "tests/unit/system/test_usernamespaces.py::test_what_is_kept_goes_with_the_new_namespace": _THREAD,
    "tests/unit/node/test_endings.py": _THREAD,
    "tests/unit/node/test_imagemounts.py::test_what_is_asked_of_the_kernel_about_its_age": _CALLS,
    "tests/unit/node/test_imagemounts.py::test_what_this_kernel_does": _CALLS,
    "tests/unit/node/test_mounts.py::test_an_image_that_squashfuse_serves_is_a_file_of_the_users_own": _CALLS,
    "tests/unit/steps/test_jobnamespaces.py::test_one_of_another_user_namespace_is_refused": _NAMESPACES,
    "tests/unit/steps/test_jobnamespaces.py::test_one_that_is_kept_later_is_seen": _NAMESPACES,
    "tests/unit/steps/test_jobnamespaces.py::test_only_a_directory_of_root_is_built_in": _NAMESPACES,
    "tests/unit/steps/test_jobnamespaces.py::test_the_jobs_own_is_found": _NAMESPACES,
    "tests/unit/steps/test_slurmstepd.py::test_anybodys_process_does_not_pass_for_a_slurmstepd": (
        "/proc says of another process what is qemu-user's"
    ),
    "tests/unit/score/test_saturation.py::test_splitting_a_series_changes_nothing": "it computes for minutes",
    "tests/unit/cli/test_env.py::test_submit_does_not_cache_for_another_configuration": _TIME,
}
