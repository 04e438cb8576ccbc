/* environment.c - the hooks of --environment.
 *
 *   srun, sbatch, salloc   init_post_opt: the request becomes a definition, which travels in one variable
 *   slurmstepd             init_post_opt: connect to pioletd and send START; do not wait
 *   each task              task_init: read the answer, join the container
 *   slurmstepd             exit: close the connection, which takes the container down
 *
 * What may fail where: errors are shown in srun before anything is queued, or in task_init. Every other
 * remote hook returns 0 always, since a failure there drains the node under sbatch. For the same reason
 * job_prolog and job_epilog are not defined at all: each would cost every job of the cluster 16 ms.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What Slurm looks up by name; all else is hidden. */
#pragma GCC visibility push(default)
#include <slurm/slurm.h>
#include <slurm/spank.h>
SPANK_PLUGIN(piolet_environment, 1)
#pragma GCC visibility pop

/* The definition, on its way from srun to slurmstepd, and from sbatch to the sruns of its script. Slurm
 * carries SLURM_* even with --export=NONE. */
#define VARIABLE "SLURM_PIOLET_ENVIRONMENT"
#define VARIABLE_REQUEST "SLURM_PIOLET_REQUEST"
#define VARIABLE_INHERITED "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment"
#define ARGUMENT_ZERO "PIOLET_ARGV0"
/* Where the plugin is not loaded, this is in the way of the command: the step fails, and never runs bare. */
#define ABSENT "/the/plugin/piolet_environment/is/missing/on/this/node/"
#define HOST_REQUEST "none"
#define DEFAULT_COMMAND "/usr/bin/piolet"
#define DEFAULT_SOCKET "/run/piolet/node.sock"
#define DEFAULT_TIMEOUT_S 30
#define TIMEOUT_MAX_S 3600

/* A plugin is called by name, with nothing of its own in hand: its state has to be static. */
static struct {
	const char *command, *config, *socket;
	long timeout_s;
	char *request;		/* the option's last value, or NULL */
	unsigned given;		/* how often the option's callback fired */
	char *part;		/* in srun: what an earlier part of a heterogeneous step asked for, or NULL */
	int fd;			/* the connection to pioletd, or -1 */
	int64_t deadline_ms;
	struct failure failure;	/* of a hook that must not fail; task_init reports it */
} state = { DEFAULT_COMMAND, NULL, DEFAULT_SOCKET, DEFAULT_TIMEOUT_S, NULL, 0, NULL, -1, 0, { false, "", "" } };

static int option_given(int value, const char *argument, int remote)
{
	char *copy = strdup(argument ? argument : "");

	(void)value;
	(void)remote;
	if (!copy)
		return -1;
	free(state.request);
	state.request = copy;
	state.given++;
	return 0;
}

static struct spank_option option = {
	.name = "environment",
	.arginfo = "FILE",
	.usage = "run the step's tasks in the container that FILE describes; 'none' runs them on the host",
	.has_arg = 1,
	.val = 0,
	.cb = option_given,
};

/* Ends srun, sbatch or salloc, which have asked for nothing yet. A return of -1 would do so, too, but Slurm would
 * add two lines about plugins, below which a user has to find ours. */
__attribute__((noreturn)) static void report_and_exit(const struct failure *f)
{
	/* An empty message: the piolet command has told the user already. */
	if (f->message[0])
		dprintf(STDERR_FILENO, "piolet: error: %s%s%s\n", f->message, f->hint[0] ? "\nhint: " : "", f->hint);
	exit(EXIT_FAILURE);
}

static void read_arguments(int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (strncmp(argv[i], "command=", 8) == 0)
			state.command = argv[i] + 8;
		else if (strncmp(argv[i], "config=", 7) == 0)
			state.config = argv[i] + 7;
		else if (strncmp(argv[i], "socket=", 7) == 0)
			state.socket = argv[i] + 7;
		else if (strncmp(argv[i], "timeout=", 8) == 0) {
			char *end;
			long seconds = strtol(argv[i] + 8, &end, 10);

			if (*end || seconds < 1 || seconds > TIMEOUT_MAX_S)
				slurm_error("piolet_environment: timeout=%s in plugstack.conf is not 1 to %d seconds",
					    argv[i] + 8, TIMEOUT_MAX_S);
			else
				state.timeout_s = seconds;
		} else
			slurm_error("piolet_environment: unknown argument '%s' in plugstack.conf", argv[i]);
	}
}

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	spank_context_t context = spank_context();

	if (context == S_CTX_SLURMD)
		return 0;
	read_arguments(argc, argv);
	return spank_option_register(spank, &option) == ESPANK_SUCCESS ? 0 : -1;
}

static bool wanted(void)
{
	return state.request && strcmp(state.request, HOST_REQUEST) != 0;
}

/* An srun in a batch script or an salloc: the definition was made at submit time and is still here.
 * An option of srun's own fires the callback once more. */
static bool inherited(void)
{
	const char *request = getenv(VARIABLE_REQUEST);

	return state.given == 1 && getenv(VARIABLE_INHERITED) && getenv(VARIABLE) && request &&
	       strcmp(request, state.request) == 0;
}

/* Slurm calls once for each part of a heterogeneous step, but hands the nodes one value of the option, the last,
 * whatever each part said. Running a part in another's container would be worse than not at all. */
static void compare_parts(void)
{
	const char *request = state.request ? state.request : HOST_REQUEST;
	struct failure failure = { 0 };

	if (state.part && strcmp(state.part, request) != 0) {
		fail(&failure, "give all parts the same environment, or start them as steps of their own",
		     "the parts of a heterogeneous step cannot have different environments ('%s' and '%s')",
		     state.part, request);
		report_and_exit(&failure);
	}
	if (!state.part)
		state.part = strdup(request);
}

static int local_post_opt(void)
{
	struct submission submission;
	struct failure failure = { 0 };
	char *value;

	if (inherited())
		return 0;
	if (submission_get(state.command, state.config, state.request, &submission, &failure) < 0)
		report_and_exit(&failure);
	value = strndup(submission.definition, submission.definition_length);
	submission_free(&submission);
	if (!value || setenv(VARIABLE, value, 1) < 0 || setenv(VARIABLE_REQUEST, state.request, 1) < 0) {
		fail(&failure, NULL, "out of memory");
		report_and_exit(&failure);
	}
	free(value);
	return 0;
}

/* srun has no way to ask; its own command line says it, abbreviated or not. Mistaken for it, an application's own
 * --mu... costs nothing but the protection. */
static bool several_programs(void)
{
	static char line[65536];
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, line, sizeof(line));

	if (fd >= 0)
		close(fd);
	return length > 0 && memmem(line, (size_t)length, "\0--mu", 5);
}

/* In srun, when the step is about to be launched. */
int slurm_spank_local_user_init(spank_t spank, int argc, char **argv)
{
	char **command = NULL, *guarded;
	int count = 0;

	(void)argc;
	(void)argv;
	/* With --multi-prog the first word is a file that srun is still going to read. */
	if (!wanted() || several_programs() || spank_get_item(spank, S_JOB_ARGV, &count, &command) || count < 1 || !command)
		return 0;
	if (asprintf(&guarded, ABSENT "%s", command[0]) < 0)
		return -1;
	command[0] = guarded;
	return 0;
}

/* Takes away what local_user_init put in front of the command, in place: the words are Slurm's to free. */
static void clear_the_way(spank_t spank)
{
	char **command = NULL;
	int count = 0;

	if (spank_get_item(spank, S_JOB_ARGV, &count, &command) || count < 1 || !command)
		return;
	if (strncmp(command[0], ABSENT, strlen(ABSENT)) == 0)
		memmove(command[0], command[0] + strlen(ABSENT), strlen(command[0]) - strlen(ABSENT) + 1);
}

/* Batch scripts, extern and interactive steps run on the host: their ids are above every real step's. */
static bool real_step(uint32_t step)
{
	return step < SLURM_INTERACTIVE_STEP;
}

static int send_start(spank_t spank)
{
	struct failure *f = &state.failure;
	struct piolet_start start = { .plugin = PIOLET_PLUGIN_ENVIRONMENT };
	gid_t *groups = NULL;
	int count = 0;
	char *definition = malloc(PIOLET_DEFINITION_MAX + 1), *message = malloc(PIOLET_START_MAX);
	size_t length;
	int rc = -1;

	_Static_assert(sizeof(gid_t) == 4, "groups go over the wire as they are");
	if (!definition || !message) {
		fail(f, NULL, "out of memory");
		goto out;
	}
	if (spank_get_item(spank, S_JOB_ID, &start.job) || spank_get_item(spank, S_JOB_STEPID, &start.step) ||
	    spank_get_item(spank, S_JOB_UID, &start.uid) || spank_get_item(spank, S_JOB_GID, &start.gid)) {
		fail(f, NULL, "Slurm does not say which step this is");
		goto out;
	}
	if (spank_get_item(spank, S_JOB_SUPPLEMENTARY_GIDS, &groups, &count) || count < 0 || !groups)
		count = 0;
	if (spank_getenv(spank, VARIABLE, definition, PIOLET_DEFINITION_MAX + 1)) {
		fail(f, "submit again on a node where the plugin piolet_environment is installed",
		     "the definition of the environment did not come with the step");
		goto out;
	}
	start.groups = (uint32_t)count;
	start.definition = (uint32_t)strlen(definition);
	start.timeout_ms = (uint32_t)state.timeout_s * 1000;
	gethostname(start.node, sizeof(start.node) - 1);
	length = start_encode(&start, groups, definition, message, PIOLET_START_MAX, f);
	if (!length)
		goto out;
	state.fd = channel_open(state.socket, f);
	if (state.fd < 0)
		goto out;
	state.deadline_ms = now_ms() + state.timeout_s * 1000;
	rc = channel_send(state.fd, message, length, f);
out:
	free(definition);
	free(message);
	return rc;
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	spank_context_t context = spank_context();
	uint32_t step = 0;

	(void)argc;
	(void)argv;
	if (context == S_CTX_LOCAL)
		compare_parts();
	if (!wanted())
		return 0;
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		return local_post_opt();
	if (context != S_CTX_REMOTE || spank_get_item(spank, S_JOB_STEPID, &step) || !real_step(step))
		return 0;
	clear_the_way(spank);
	if (state.fd < 0 && !state.failure.set)
		send_start(spank);
	return 0;
}

/* Applies the entries to the task's environment; Slurm refuses none that environment_check lets through. */
static int apply_environment(spank_t spank, const struct reply *reply, struct failure *f)
{
	size_t size = reply->ready->environment, got = 0;
	char *entries;
	int rc;

	if (reply->environment < 0 || size == 0)
		return 0;
	entries = malloc(size);
	if (!entries)
		return fail(f, NULL, "out of memory");
	while (got < size) {
		/* pread: every task's descriptor shares one file offset. */
		ssize_t n = pread(reply->environment, entries + got, size - got, (off_t)got);

		if (n <= 0)
			break;
		got += (size_t)n;
	}
	rc = got == size ? environment_check(entries, size, f) :
			   fail(f, NULL, "the environment that pioletd handed over is cut short");
	for (size_t at = 0; rc == 0 && at < size; at += strlen(entries + at) + 1) {
		char *name = entries + at + 1, *equals = strchr(name, '=');

		if (entries[at] == '-') {
			spank_unsetenv(spank, name);
			continue;
		}
		*equals = '\0';
		if (spank_setenv(spank, name, equals + 1, 1) != ESPANK_SUCCESS)
			rc = fail(f, NULL, "Slurm does not take the variable %s", name);
		*equals = '=';
	}
	free(entries);
	return rc;
}

/* Slurm has no way to put a program in front of the command before 23.11, but argv[0] can be replaced:
 * the program finds what it replaced in a variable. */
static int put_entrypoint(spank_t spank, const struct reply *reply, struct failure *f)
{
	static char program[sizeof(reply->ready->entrypoint)];
	char **argv = NULL;
	int argc = 0;

	if (!reply->ready->entrypoint[0])
		return 0;
	memcpy(program, reply->ready->entrypoint, sizeof(program));
	if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) || argc < 1 || !argv ||
	    spank_setenv(spank, ARGUMENT_ZERO, argv[0], 1) != ESPANK_SUCCESS)
		return fail(f, "set entrypoint = false", "the image's entrypoint cannot be put in front of the command");
	argv[0] = program;
	return 0;
}

static int enter(spank_t spank, struct failure *f)
{
	struct reply reply;
	int rc;

	if (channel_peek(state.fd, state.deadline_ms, &reply, f) < 0)
		return -1;
	rc = apply_environment(spank, &reply, f);
	if (rc == 0)
		rc = join_namespaces(&reply, f);
	if (rc == 0)
		rc = put_entrypoint(spank, &reply, f);
	reply_close(&reply);
	return rc;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
	struct failure failure = state.failure;
	uint32_t step = 0;
	int task = 0, rc = -1;
	char node[64] = "";

	(void)argc;
	(void)argv;
	if (!wanted() || spank_get_item(spank, S_JOB_STEPID, &step) || !real_step(step))
		return 0;
	if (!failure.set && state.fd >= 0)
		rc = enter(spank, &failure);
	else if (!failure.set)
		fail(&failure, NULL, "the step was not announced to pioletd");
	if (state.fd >= 0)
		close(state.fd);
	state.fd = -1;
	spank_unsetenv(spank, VARIABLE);
	spank_unsetenv(spank, VARIABLE_REQUEST);
	if (rc == 0)
		return 0;
	/* All tasks of a node fail alike: one of them says so. */
	spank_get_item(spank, S_TASK_ID, &task);
	gethostname(node, sizeof(node) - 1);
	if (task == 0)
		dprintf(STDERR_FILENO, "piolet: error: node %s: %s%s%s\n", node, failure.message,
			failure.hint[0] ? "\nhint: " : "", failure.hint);
	return -1;
}

int slurm_spank_exit(spank_t spank, int argc, char **argv)
{
	(void)spank;
	(void)argc;
	(void)argv;
	if (state.fd >= 0)
		close(state.fd);
	state.fd = -1;
	free(state.request);
	free(state.part);
	state.request = state.part = NULL;
	return 0;
}
