"""What Slurm tells, as tuples with names. None stands for what it does not say: no value, not set, or no limit.

Times are seconds of the epoch, sizes MiB, limits minutes. The order of the first fields is that of the columns in
slurm_ext.c; `TEXTS` are those that are strings there.
"""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    """A job, or a task of a job array.

    state          as squeue says it: 'PENDING', 'RUNNING', 'COMPLETED', …
    nodes          a list of hosts, '' before it runs
    time_limit     minutes; None: none
    priority       0: held
    reason         why it waits or failed: 'None', 'JobHeldUser', 'Resources', …
    array_job_id   of a job array; None: it belongs to none
    exit_code      as of wait(2)
    """

    id: int
    name: str
    state: str
    user_id: int
    group_id: int
    partition: str
    account: str | None
    qos: str | None
    nodes: str | None
    num_nodes: int | None
    num_cpus: int | None
    num_tasks: int | None
    priority: int | None
    time_limit: int | None
    submit_time: int | None
    start_time: int | None
    end_time: int | None
    reason: str
    comment: str | None
    work_dir: str | None
    command: str | None
    array_job_id: int | None
    array_task_id: int | None
    restarts: int
    exit_code: int


class Node(NamedTuple):
    """A node.

    state         the base state: 'IDLE', 'ALLOCATED', 'MIXED', 'DOWN', 'FUTURE', …
    memory        MiB, as configured; `free_memory` MiB as the operating system says
    load          of the operating system, times 100
    reason        why it is down or drained; with who said it (a user's number) and when
    flags         'DRAIN', 'NOT_RESPONDING', 'COMPLETING', …
    """

    name: str
    state: str
    cpus: int
    memory: int
    free_memory: int | None
    load: int | None
    gres: str | None
    gres_used: str | None
    features: str | None
    reason: str | None
    reason_user_id: int | None
    reason_time: int | None
    boot_time: int | None
    slurmd_start_time: int | None
    hostname: str | None
    version: str | None
    flags: frozenset[str]


class Step(NamedTuple):
    """A step that runs. `step_id` is a number, or 'batch', 'extern', 'interactive'."""

    job_id: int
    step_id: int | str
    name: str
    state: str
    user_id: int
    partition: str
    nodes: str | None
    num_tasks: int | None
    num_cpus: int | None
    start_time: int | None


class Partition(NamedTuple):
    """A partition. `state` is 'UP', 'DOWN', 'DRAIN' or 'INACTIVE'; limits are minutes, None: none."""

    name: str
    state: str
    nodes: str | None
    num_nodes: int
    num_cpus: int
    max_time: int | None
    default_time: int | None
    default: bool


class Snapshot(NamedTuple):
    """What slurmctld knows at about one moment."""

    jobs: list[Job]
    nodes: list[Node]
    partitions: list[Partition]


TEXTS = {
    Job: {"name", "partition", "account", "qos", "nodes", "comment", "work_dir", "command"},
    Node: {"name", "gres", "gres_used", "features", "reason", "hostname", "version"},
    Step: {"name", "partition", "nodes"},
    Partition: {"name", "nodes"},
}
NODE_STATES = ("UNKNOWN", "DOWN", "IDLE", "ALLOCATED", "ERROR", "MIXED", "FUTURE")
NODE_FLAGS = {
    5: "RESERVED", 7: "CLOUD", 9: "DRAIN", 10: "COMPLETING", 11: "NOT_RESPONDING", 12: "POWERED_DOWN", 13: "FAIL",
    14: "POWERING_UP", 15: "MAINTENANCE", 16: "REBOOT_REQUESTED", 18: "POWERING_DOWN", 19: "DYNAMIC_FUTURE",
    20: "REBOOT_ISSUED", 21: "PLANNED", 22: "INVALID_REG", 23: "POWER_DOWN", 24: "POWER_UP", 25: "POWER_DRAIN",
    26: "DYNAMIC_NORM",
}  # fmt: skip
PARTITION_STATES = {1: "DOWN", 2: "DRAIN", 3: "UP", 0: "INACTIVE"}
STEP_NAMES = {0xFFFFFFFC: "extern", 0xFFFFFFFB: "batch", 0xFFFFFFFA: "interactive", 0xFFFFFFFD: "pending"}
