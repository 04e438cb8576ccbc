"""The functions of `native`, by pyslurm, for a machine that has pyslurm and no binding of its own.

A pyslurm of another release of Slurm does not load, since the name of libslurm's file changes with each. What pyslurm
does not tell in the same way is None or put together from what it tells: `Node.gres`, say, comes from a dictionary.
"""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pyslurm

from pyslurm_ext.errors import SlurmError
from pyslurm_ext.records import Job, Node, Partition, Snapshot, Step

_Value = TypeVar("_Value")


def version() -> tuple[int, int, int]:
    """Return the version of Slurm that pyslurm is for; it does not say which patch of it."""
    major, minor = str(pyslurm.__version__).split(".")[:2]
    return int(major), int(minor), 0


def jobs() -> list[Job]:
    """Return every job that slurmctld knows."""
    return [_job(one) for one in _do("list jobs", pyslurm.Jobs.load).values()]


def job(number: int) -> Job:
    """Return one job."""
    return _job(_do(f"show job {number}", lambda: pyslurm.Job.load(number)))


def nodes() -> list[Node]:
    """Return every node."""
    return [_node(one) for one in _do("list nodes", pyslurm.Nodes.load).values()]


def node(name: str) -> Node:
    """Return one node."""
    return _node(_do(f"show node {name}", lambda: pyslurm.Node.load(name)))


def steps(job_id: int | None = None) -> list[Step]:
    """Return the steps that run, of one job or of all."""
    if job_id is not None:
        found = _do(f"list steps of job {job_id}", lambda: pyslurm.JobSteps.load(job_id))
        return [_step(one) for one in found.values()]
    return [_step(one) for of_job in _do("list steps", pyslurm.JobSteps.load_all).values() for one in of_job.values()]


def partitions() -> list[Partition]:
    """Return every partition."""
    return [_partition(one) for one in _do("list partitions", pyslurm.Partitions.load).values()]


def snapshot() -> Snapshot:
    """Return jobs, nodes and partitions."""
    return Snapshot(jobs(), nodes(), partitions())


def drain(names: Iterable[str] | str, reason: str) -> None:
    """Let nodes take no new job; `reason` must say why."""
    if not reason.strip():
        raise SlurmError("cannot drain without a reason", hint="say what is wrong with the node")
    _modify(names, "drain", state="DRAIN", reason=reason)


def resume(names: Iterable[str] | str) -> None:
    """Let nodes that were drained or down take jobs again."""
    _modify(names, "resume", state="RESUME")


def requeue(number: int, hold: bool = False) -> None:
    """Put a batch job back into its queue, held where `hold` says so."""
    _do(f"requeue job {number}", lambda: pyslurm.Job(number).requeue(hold=hold))


def set_comment(number: int, comment: str) -> None:
    """Set a job's comment."""
    changes = pyslurm.JobSubmitDescription(comment=comment)
    _do(f"set the comment of job {number}", lambda: pyslurm.Job(number).modify(changes))


def expand(hosts: str) -> list[str]:
    """Return the hosts of a list such as 'node[1-3,7]'."""
    return list(_do(f"read the list of hosts '{hosts[:200]}'", lambda: pyslurm.utils.nodelist_from_range_str(hosts)))


def compress(hosts: Iterable[str]) -> str:
    """Return the shortest list of these hosts."""
    names = sorted(set(hosts))
    return str(_do("write a list of hosts", lambda: pyslurm.utils.nodelist_to_range_str(names)))


# -- how


def _do(what: str, act: Callable[[], _Value]) -> _Value:
    try:
        return act()
    except pyslurm.PyslurmError as error:
        raise SlurmError(f"cannot {what}: {error}", int(getattr(error, "errno", 0) or 0)) from None


def _modify(names: Iterable[str] | str, what: str, **changes: str) -> None:
    hosts = expand(names) if isinstance(names, str) else list(names)
    if not hosts:
        raise SlurmError("no node is named")
    for name in hosts:
        wanted = pyslurm.Node(**changes)
        _do(f"{what} {name}", lambda name=name, wanted=wanted: pyslurm.Node(name).modify(wanted))  # type: ignore[misc]


def _job(one: Any) -> Job:
    return Job(
        one.id, one.name or "", one.state, one.user_id, one.group_id, one.partition or "", one.account, one.qos,
        one.allocated_nodes or "", one.num_nodes, one.cpus, one.ntasks, one.priority, _limit(one.time_limit),
        one.submit_time, one.start_time, one.end_time, one.state_reason or "None", one.comment, one.working_directory,
        one.command, one.array_id, one.array_task_id if one.array_id else None, one.requeue_count,
        (one.exit_code or 0) << 8 | (one.exit_code_signal or 0),
    )  # fmt: skip


def _node(one: Any) -> Node:
    state, *flags = one.state.split("+")
    reason = one.reason or None
    return Node(
        one.name, state, one.total_cpus, one.real_memory or 0, one.free_memory, round(one.cpu_load * 100),
        _joined(one.configured_gres), _joined(one.allocated_gres), _joined(one.available_features), reason,
        _number_of(one.reason_user) if reason else None, one.reason_time if reason else None, one.boot_time,
        one.slurmd_start_time, one.hostname, one.slurm_version, frozenset(flags),
    )  # fmt: skip


def _step(one: Any) -> Step:
    return Step(
        one.job_id, one.id, one.name or "", one.state, one.user_id, one.partition or "", _joined(one.allocated_nodes),
        one.ntasks, one.cpus, one.start_time,
    )  # fmt: skip


def _partition(one: Any) -> Partition:
    return Partition(
        one.name, one.state, one.nodes, one.total_nodes, one.total_cpus, _limit(one.max_time),
        _limit(one.default_time), bool(one.is_default),
    )  # fmt: skip


def _limit(value: Any) -> int | None:
    """Return minutes, or None for pyslurm's word 'UNLIMITED'."""
    return value if isinstance(value, int) else None


def _joined(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = [f"{name}:{count}" for name, count in value.items()]
    return value if value is None or isinstance(value, str) else ",".join(value)


def _number_of(user: str | None) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        return None
