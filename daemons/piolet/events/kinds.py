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
        "code": "what code it is: a name of ours, or the path of a site's file; absent where it is a user's",
        "release": "of that code: our release, or the SHA-256 of a site's file",
        "origin": "built-in, site or user: whose code ran (decision 66)",
        "plan": "the digest of the protocol, as it was worked out for the nodes", "protocol": "the protocol's name",
        "state": "pass, warn, fail, inconclusive, as this node alone can tell: vet.decision has what it came to",
        "judge": "what it is held against: limit, peers, history or pair", "value": "what was measured",
        "unit": "of value and limit", "limit": "what it was held against", "serial": "of the GPU",
        "reason": "the eval's sentence", "said": "all else that the vetting said",
        "pid": "of the process that asked", "found": "what says to which job it belongs: cgroup, slurmstepd, unknown",
        "sluid": "of a job that has no number where its process is",
    }),
    Kind("vet.decision", (USER,), "srun decided which nodes the application gets", {
        "claimed": "the number of the job, as srun says it", "plan": "the protocol's digest", "protocol": "its name",
        "state": "good, warned and bad -> host list", "excluded": "host list: what was left out",
        "why": "node -> sentences, of the first nodes that were left out or warned of",
        "spares": "how many good nodes there are beside those that were asked for",
        "chosen": "host list: what srun may use for the application",
        "evals": "eval -> fail and inconclusive -> host list, as judged at the end, against peers and the past too",
        "judges": "eval -> limit, peers, history or pair", "abort": "why no application may start", "said": "cut",
        "futile": "why other nodes would be no better", "pid": "of srun's command", "found": "as of vet.verdict",
        "sluid": "likewise",
    }),
    Kind("vet.refused", (USER,), "a vetting could not be done on the node", {
        "reason": "the sentence", "by": "whose process says so: root or user; a user can bring about either",
        "pid": "of the process that asked", "found": "as of vet.verdict", "sluid": "likewise",
    }),
    Kind("step.refused", (USER,), "a step's container could not be started", {
        "reason": "the sentence", "image": "its digest",
    }),
    Kind("step.outcome", (USER,), "tasks of a step ended alike on a node", {
        "task": "the rank of the first that ended so", "tasks": "so many tasks of this node did",
        "status": "the exit status; absent where a signal ended it", "signal": "its number",
        "core": "1: with a core dump, or one was wanted",
        "why": "exit, signal, time_limit, out_of_memory, other; whose scancel a signal was, says slurm.job_end",
        "order": "0 for how the first task ended, 1 for the next that ended in another way, …",
        "array": "the number of the job array, and of the job in it",
        "het_job": "of a component of a heterogeneous job: the job of its first component, as srun said",
    }),
    # What the hardware and the kernel say.
    Kind("gpu.xid", (KERNEL,), "the driver of NVIDIA's GPUs reported an error", {
        "xid": "its number", "pci": "the GPU's bus address", "serial": "of the GPU",
        "text": "the line without its process",
        "gpc": "of XID 13, where the line names it", "tpc": "likewise",
        "more": "so many like it in the minute after the first, which is a record of its own",
    }),
    Kind("gpu.lost", (KERNEL, ROOT), "a GPU is not there any more", {
        "pci": "its bus address", "more": "as of gpu.xid",
    }),
    Kind("nvswitch.sxid", (KERNEL,), "the driver of NVSwitches reported an error", {
        "sxid": "its number", "text": "the line", "more": "as of gpu.xid",
    }),
    Kind("pcie.aer", (KERNEL,), "a PCIe device reported an error", {
        "pci": "its bus address", "text": "the line", "more": "as of gpu.xid",
    }),
    Kind("memory.ecc", (KERNEL,), "memory of the host had errors (EDAC, machine check)", {
        "corrected": "how many", "uncorrected": "how many", "text": "the line",
        "more": "as of gpu.xid",
    }),
    Kind("device.error", (KERNEL,), "a driver reported a fault of another device: a drive, an adapter, a hot CPU", {
        "text": "the line", "pci": "its bus address", "more": "so many like it in the minute after the first",
    }),
    Kind("link.flap", (KERNEL,), "a network port went down or changed its speed", {
        "state": "up or down", "flaps": "how often it went down since the last record",
        "rate": "what it runs at now: Mbit/s of a network device, Gbit/s of an InfiniBand port",
    }),
    Kind("kernel.oom", (KERNEL,), "the kernel ended a process for want of memory", {
        "scope": "cgroup or node", "more": "as of gpu.xid",
    }),
    Kind("fs.blocked", (KERNEL, ROOT), "processes wait in state D, or a file system does not answer", {
        "processes": "how many", "accounts": "of how many accounts they are, root's among them",
        "seconds": "how long", "text": "what the file system said", "more": "as of gpu.xid",
    }),
    Kind("fs.evicted", (KERNEL,), "a Lustre server evicted this client", {
        "text": "the line", "more": "as of gpu.xid",
    }),
    # What Slurm and the site say; the central service writes these.
    Kind("slurm.node_state", (SITE,), "Slurm's state of a node changed", {
        "state": "drain, down, fail, resume, powered_down, …", "reason": "as given", "by": "who: a user's name",
    }),
    Kind("slurm.job_end", (SITE, USER), "a job ended; NODE_FAIL is the site's word, the rest the user's doing", {
        "state": "NODE_FAIL, TIMEOUT, OUT_OF_MEMORY, FAILED, CANCELLED, COMPLETED, REQUEUED", "nodes": "host list",
        "status": "exit status", "signal": "its number", "by": "of CANCELLED: the uid whose scancel it was",
        "array": "112_1, or 12+1 of a heterogeneous job", "start": "when it began, seconds since 1970",
    }),
    Kind("site.repair", (SITE,), "somebody repaired the node", {"text": "what", "by": "who", "ticket": "its number"}),
    Kind("site.note", (SITE,), "somebody wrote a note", {"text": "what", "by": "who", "case": "of which case"}),
    Kind("site.revet", (SITE, ROOT), "a re-vet that the service had asked for was done, by the site", {
        "outcome": "good or bad", "reason": "the sentence", "request": "which",
    }),
)  # fmt: skip

KINDS = {kind.name: kind for kind in _ALL}
