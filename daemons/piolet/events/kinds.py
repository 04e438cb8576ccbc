"""Every kind of event: who may be its source, and what its body says.

A record of another kind is kept, and no rule sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

from piolet.events.envelope import KERNEL, ROOT, SITE, USER


@dataclass(frozen=True)
class Kind:
    """A kind of event.

    name     as in the envelope
    sources  who may have made it come true; a record with another source is refused by the central service
    about    one line for people
    body     key -> what it says, with its unit; a record may have fewer keys, and has no others
    """

    name: str
    sources: tuple[str, ...]
    about: str
    body: dict[str, str]


_ALL = (
    # What a node says of itself and its records.
    Kind("node.start", (ROOT,), "a node's daemon began to write events", {
        "piolet": "its version", "kernel": "uname -r", "booted": "when the node booted, seconds since 1970",
        "before": "the epoch before this one, where the spool was made anew",
    }),
    Kind("node.heartbeat", (ROOT,), "the node's daemon is well and can write", {"uptime_s": "seconds since boot"}),
    Kind("spool.dropped", (ROOT,), "records above a user's share were not written", {
        "records": "how many", "bytes": "of how many bytes together", "why": "which bound",
    }),
    Kind("spool.lost", (ROOT,), "records were removed before they were delivered", {
        "epoch": "of which epoch", "first": "the first number", "last": "the last number", "records": "how many",
        "bytes": "of how many bytes together", "why": "which bound",
    }),
    # What vettings and steps come to. All of it is users' doing.
    Kind("vet.verdict", (USER,), "an eval of a user's vetting came to a verdict", {
        "eval": "its name in the protocol",
        "code": "what code it is: a name of ours, the path of a site's file, or null",
        "origin": "built-in, site or user: whose code ran (decision 66)", "plan": "the plan's digest",
        "protocol": "the protocol's name", "digest": "the protocol's digest", "state": "pass, warn, fail, inconclusive",
        "outcome": "as judged at the end: good, warned, bad, or null where srun has not said it",
        "judge": "limit, peers, history or pair", "value": "what was measured", "unit": "of value and limit",
        "limit": "what it was held against", "serial": "of the GPU", "reason": "the eval's sentence",
        "said": "all of it",
    }),
    Kind("vet.decision", (USER,), "srun decided which nodes the application gets", {
        "excluded": "nodes that were left out", "why": "node -> sentences", "spares": "nodes left that were not needed",
        "plan": "the plan's digest", "state": "node -> good, warned or bad",
    }),
    Kind("vet.refused", (ROOT,), "a vetting could not run, for the node", {"reason": "the sentence"}),
    Kind("step.refused", (ROOT,), "a step's container could not be started", {"reason": "the sentence"}),
    Kind("step.outcome", (USER,), "a task ended", {
        "task": "its rank", "status": "the exit status, null where a signal ended it", "signal": "its number, or null",
        "why": "exit, signal, cancelled, time_limit, out_of_memory, node_fail", "tasks": "so many tasks ended alike",
    }),
    # What the hardware and the kernel say.
    Kind("gpu.xid", (KERNEL,), "the driver of NVIDIA's GPUs reported an error", {
        "xid": "its number", "pci": "the GPU's bus address", "serial": "of the GPU",
        "text": "the line without its process",
        "gpc": "of XID 13, where the line names it", "tpc": "likewise",
    }),
    Kind("gpu.lost", (KERNEL, ROOT), "a GPU is not there any more", {"pci": "its bus address"}),
    Kind("nvswitch.sxid", (KERNEL,), "the driver of NVSwitches reported an error", {
        "sxid": "its number", "text": "the line",
    }),
    Kind("pcie.aer", (KERNEL,), "a PCIe device reported an error", {"pci": "its bus address", "text": "the line"}),
    Kind("memory.ecc", (KERNEL,), "memory of the host had errors (EDAC, machine check)", {
        "corrected": "how many", "uncorrected": "how many", "text": "the line",
    }),
    Kind("link.flap", (KERNEL,), "a network port went down or changed its speed", {
        "state": "up or down", "flaps": "how many",
    }),
    Kind("kernel.oom", (KERNEL,), "the kernel ended a process for want of memory", {"scope": "cgroup or node"}),
    Kind("fs.blocked", (KERNEL, ROOT), "processes wait for a file system in state D", {
        "processes": "how many", "seconds": "how long",
    }),
    Kind("fs.evicted", (KERNEL,), "a Lustre server evicted this client", {"text": "the line"}),
    # What Slurm and the site say; the central service writes these.
    Kind("slurm.node_state", (SITE,), "Slurm's state of a node changed", {
        "state": "drain, down, fail, resume, powered_down, …", "reason": "as given", "by": "who: a user's name",
    }),
    Kind("slurm.job_end", (SITE, USER), "a job ended; NODE_FAIL is the site's word, the rest the user's doing", {
        "state": "NODE_FAIL, TIMEOUT, OUT_OF_MEMORY, FAILED, CANCELLED, COMPLETED, REQUEUED", "nodes": "host list",
        "status": "exit status", "signal": "its number", "array": "112_1, or 12+1 of a heterogeneous job",
        "start": "when it began, seconds since 1970",
    }),
    Kind("site.repair", (SITE,), "somebody repaired the node", {"text": "what", "by": "who", "ticket": "its number"}),
    Kind("site.note", (SITE,), "somebody wrote a note", {"text": "what", "by": "who", "case": "of which case"}),
    Kind("site.revet", (SITE, ROOT), "a re-vet that the service had asked for was done, by the site", {
        "outcome": "good or bad", "reason": "the sentence", "request": "which",
    }),
)  # fmt: skip

KINDS = {kind.name: kind for kind in _ALL}
