/* wire.h - the protocol between the plugins in Slurm's processes and Piolet's Python.
 *
 * This file is the specification. The shims compile it; Python gets the same declarations through
 * cffi's cdef, so it holds only integers, enums and fixed structs: no guards, no includes, no
 * attributes, no computed defines. Guards and static asserts are in shim.h.
 *
 * Everything is in the byte order of the host: both ends are on one machine, always. Lengths are
 * in bytes. Text is UTF-8, and is followed by a NUL only where it says so. Whoever receives a
 * message checks `magic`, `version`, `kind` and every length against the bytes that really came,
 * and refuses what is too long, too new or malformed in one sentence.
 *
 *
 * 1. A step's life: one SOCK_SEQPACKET connection per step, node and plugin
 *
 *    slurmstepd (root)  --- START --->  pioletd         once, right after connect
 *    slurmstepd's tasks <-- READY ---   pioletd         or ERROR; exactly one of them, once
 *    a task             --- ERROR --->  pioletd         where the tasks of this node do not start; once
 *
 * The tasks of a step share the connection that slurmstepd opened: each reads the answer with
 * MSG_PEEK, so it stays there for its siblings, and each peek duplicates the descriptors afresh.
 * The connection ends when slurmstepd ends, and with it all that was set up for the step.
 */

#define PIOLET_MAGIC 0x544C4950
#define PIOLET_VERSION 2

/* Limits. A definition travels in one environment variable (Linux: 128 KiB) and in one message. */
#define PIOLET_DEFINITION_MAX 98304
#define PIOLET_GROUPS_MAX 1024
#define PIOLET_START_MAX 106496
#define PIOLET_ENVIRONMENT_MAX 262144
#define PIOLET_REPLY_MAX 8192

enum piolet_kind {
	PIOLET_START = 1,
	PIOLET_READY = 2,
	PIOLET_ERROR = 3,
	PIOLET_VET = 4,
	PIOLET_GPUS = 5,
	PIOLET_OUTCOME = 6,
	PIOLET_DECISION = 7
};

enum piolet_plugin {
	PIOLET_PLUGIN_ENVIRONMENT = 1,
	PIOLET_PLUGIN_SCORE = 2	/* on a socket of its own; see 3 */
};

struct piolet_header {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;
	uint32_t length;	/* of the whole message, this header included */
	uint32_t reserved;	/* 0, but for READY */
};

/* Followed by `groups` numbers of 32 bits (the supplementary groups), then by `definition` bytes
 * of canonical JSON. Only root may send it: the kernel says who the peer is. */
struct piolet_start {
	struct piolet_header header;
	uint32_t plugin;	/* enum piolet_plugin */
	uint32_t job;
	uint32_t step;
	uint32_t uid;
	uint32_t gid;
	uint32_t groups;	/* at most PIOLET_GROUPS_MAX */
	uint32_t definition;	/* at most PIOLET_DEFINITION_MAX */
	uint32_t timeout_ms;	/* the tasks give up this long after the message was sent */
	char node[64];		/* the node's name in Slurm (its host's, where Slurm does not say), NUL-terminated */
};

/* Which descriptors ride along (SCM_RIGHTS), in this order. */
#define PIOLET_HAS_USER_NS 1
#define PIOLET_HAS_MOUNT_NS 2
#define PIOLET_HAS_ENVIRONMENT 4

/* The header's `reserved` is the number of the job's own mount namespace, if the container was made among its mounts, and
 * 0 if it was made among the node's. A task that is elsewhere does not enter.
 * The environment is a file of NUL-terminated entries: "+NAME=VALUE" sets, "-NAME" unsets. */
struct piolet_ready {
	struct piolet_header header;
	uint32_t descriptors;	/* PIOLET_HAS_* */
	uint32_t environment;	/* size of the environment file, at most PIOLET_ENVIRONMENT_MAX */
	char workdir[4096];	/* where the task starts, NUL-terminated; empty: stay */
	char entrypoint[256];	/* program in front of the user's command, NUL-terminated; empty: none */
};

/* A task that pioletd's READY did not help to start sends one, too, for pioletd's log: it does so as the user. */
struct piolet_error {
	struct piolet_header header;
	char message[1024];	/* one sentence, NUL-terminated */
	char hint[1024];	/* NUL-terminated, may be empty */
};

/* 2. A vet step's task, on a socket of its own
 *
 *    task (the user) --- VET --->    pioletd      once
 *    task            <-- lines ---   pioletd      one message each, text; or one ERROR; then the end
 *    task            --- orders ---> pioletd      as they came on the task's standard input, cut anywhere
 *
 * Followed by `plan` bytes of canonical JSON. Whoever sends it is vetted as whom the kernel says they are,
 * with the limits and in the cgroup of the process that sends. A message that begins with PIOLET_MAGIC is an
 * ERROR, anything else a line. The task's end ends its vetting.
 *
 *    srun (the user) --- DECISION ---> pioletd     once: what it made of a vetting; the same struct, with JSON behind it
 */
struct piolet_vet {
	struct piolet_header header;
	uint32_t plan;		/* 1 to PIOLET_DEFINITION_MAX */
	uint32_t reserved;	/* 0 */
};

/* 3. A scored step, on a socket of its own
 *
 *    slurmstepd (root)  --- START --->  the sampler     once
 *    each task          --- GPUS  --->  the sampler     all say the same; the first counts
 *
 * Nothing is answered: a step does not wait for its sampler. The connection ends when slurmstepd ends, and the sampling
 * with it.
 */
struct piolet_gpus {
	struct piolet_header header;
	uint32_t nodes;		/* of the step; 0: not known */
	uint32_t restarts;	/* how often the job was requeued: its steps' numbers begin anew each time */
	char gpus[4072];	/* as in CUDA_VISIBLE_DEVICES, NUL-terminated; empty: the step has none */
};

/* 4. How the tasks of a step ended on a node, on a socket of its own
 *
 *    slurmstepd (root)  --- OUTCOME --->  pioletd      one datagram, when all of them have
 *
 * Nothing is answered, and nothing waits: what pioletd does not take is counted in a file beside its socket, SOCKET.lost,
 * a byte for each. Who sent it the kernel says with it.
 */
#define PIOLET_WAYS_MAX 32
#define PIOLET_OUTCOME_LEAST 504	/* bytes, without het_job: what a slurmstepd says that was there before an upgrade */

struct piolet_ended {
	int32_t status;		/* as of wait(2) */
	uint32_t first;		/* the rank of the first task that ended so */
	uint32_t tasks;		/* how many did */
};

struct piolet_outcome {
	struct piolet_header header;
	uint32_t job;
	uint32_t step;
	uint32_t uid;
	uint32_t restarts;	/* how often the job was requeued */
	uint32_t array;		/* of a job array its number, or 0 */
	uint32_t array_task;	/* and which of its jobs this is */
	uint64_t end;		/* when the job's time is over, seconds since 1970; 0: Slurm does not say */
	uint32_t others;	/* tasks that ended in still other ways than those below */
	uint32_t ways;		/* so many of those below, in the order in which they came up */
	char node[64];		/* the node's name in Slurm, NUL-terminated; empty: Slurm does not say */
	struct piolet_ended ended[32];	/* PIOLET_WAYS_MAX */
	uint32_t het_job;	/* as srun said, the job as a whole: of a heterogeneous one that of its first component; 0: not told */
	uint32_t reserved;	/* 0 */
};

/* 5. A submission: what `piolet env submit` and `piolet score submit` hand to the shim in srun, sbatch or salloc,
 *    and what `piolet vet gate` leaves for the later sruns of a job whose nodes are all good
 *
 * One record, in a memory file, and the same bytes in the user's cache, so that the next srun need
 * not start Python: header, then `dependencies` entries, then `definition` bytes of canonical JSON.
 * The shim takes a cached record only if every dependency still holds.
 */
#define PIOLET_RECORD_MAGIC 0x524C4950
#define PIOLET_RECORD_MAX 1048576
#define PIOLET_DEPENDENCIES_MAX 4096

/* White space in front of a definition's JSON says what becomes of the batch script of its job. */
#define PIOLET_SCRIPT_INSIDE 0x20	/* it is in the container, too, as a step is */
#define PIOLET_SCRIPT_BARE 0x09	/* it is on the host, and starts nothing by srun */

struct piolet_record {
	uint32_t magic;		/* PIOLET_RECORD_MAGIC */
	uint32_t version;	/* PIOLET_VERSION */
	uint32_t length;	/* of the whole record */
	uint32_t dependencies;
	uint32_t definition;
	uint32_t reserved;	/* 0 */
};

enum piolet_dependency_kind {
	PIOLET_DEP_FILE = 1,	/* name is a path whose device, inode, size, mtime and ctime are these */
	PIOLET_DEP_EXISTS = 2,	/* name is a path that exists, whatever it is */
	PIOLET_DEP_ABSENT = 3,	/* name is a path that does not exist */
	PIOLET_DEP_VARIABLE = 4,	/* the environment variable `name` is set to `value` */
	PIOLET_DEP_UNSET = 5,	/* the environment variable `name` is not set */
	PIOLET_DEP_REQUEST = 6,	/* name is the request, value the working directory; always first */
	PIOLET_DEP_NOTE = 7,	/* always holds; name is a line that the user sees each time, such as a warning */
	PIOLET_DEP_UNTIL = 8	/* the clock is from mtime_ns on and before ctime_ns; name says what is good so long */
};

/* Followed by the name and the value, each NUL-terminated (the NUL counts in its length), then by
 * zeros up to a multiple of 8 bytes. `length` is all of that, this struct included. */
struct piolet_dependency {
	uint32_t kind;
	uint32_t length;
	uint32_t name;		/* length of the name with its NUL */
	uint32_t value;		/* length of the value with its NUL; at least 1 */
	uint64_t device;
	uint64_t inode;
	uint64_t size;
	uint64_t mtime_ns;
	uint64_t ctime_ns;
};
