/* environment.c - the hooks of --environment.
 *
 *   srun, sbatch, salloc   init_post_opt: the request becomes a definition, which travels in one variable
 *   slurmstepd             init_post_opt: connect to pioletd and send START; do not wait
 *   each task              task_init: read the answer, join the container
 *   slurmstepd             exit: close the connection, which takes the container down
 *
 * A batch script is a step as these are, if its definition says so.
 *
 * What may fail where: errors are shown in srun before anything is queued, or in task_init. Every other
 * remote hook returns 0 always, since a failure there drains the node under sbatch. For the same reason
 * job_prolog and job_epilog are not defined at all: each would cost every job of the cluster 16 ms.
 */
#define _GNU_SOURCE
#include "plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* What Slurm looks up by name; all else is hidden. */
#pragma GCC visibility push(default)
SPANK_PLUGIN(piolet_environment, 1)
#pragma GCC visibility pop

static const struct travel travel = {
	.option = "environment",
	.verb = "env",
	.definition = "SLURM_PIOLET_ENVIRONMENT",
	.request = "SLURM_PIOLET_REQUEST",
	.inherited = "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment",
};

/* Where the plugin is not loaded, this is in the way of the command: the step fails, and never runs bare. */
#define ABSENT "/the/plugin/piolet_environment/is/missing/on/this/node/"

static struct {
	int fd, words;		/* the connection to pioletd, or -1; how many words the command has */
	int64_t deadline_ms, mounts;	/* mounts: the mount namespace from which the step was announced */
	struct failure failure;	/* of a hook that must not fail; task_init reports it */
} state = { -1, 0, 0, 0, { false, "", "" } };

static struct spank_option option = {
	.name = "environment",
	.arginfo = "FILE",
	.usage = "run the step's tasks in the container that FILE describes; 'none' runs them on the host",
	.has_arg = 1,
	.cb = plugin_option,
};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	return plugin_init(spank, "piolet_environment", &option, argc, argv);
}

/* The command's words, `state.words` of them and no NULL behind, which are Slurm's to free but may be replaced and shortened; NULL
 * where they are not to be had. */
static char **arguments(spank_t spank)
{
	char **argv = NULL;

	return spank_get_item(spank, S_JOB_ARGV, &state.words, &argv) || state.words < 1 ? NULL : argv;
}

/* Says which file of the command's is here, where no task will be: the definition names no workdir, nor did srun. */
static void name_misplaced(char **command)
{
	const char *definition = getenv(travel.definition);
	struct stat st;

	if (!definition || !strstr(definition, "\"workdir_given\":false") || strstr(definition, "\"image\":null") || MOVED)
		return;
	for (char **word = command + 1; word < command + state.words; word++)
		if (**word != '/' && **word != '-' && stat(*word, &st) == 0 && S_ISREG(st.st_mode)) {
			dprintf(STDERR_FILENO, "piolet: warning: %s is in the working directory, but tasks start elsewhere in the "
				"container\nhint: set workdir in the definition file, or give srun --chdir\n", *word);
			return;
		}
}

/* In srun, when the step is about to be launched. */
int slurm_spank_local_user_init(spank_t spank, int argc, char **argv)
{
	char **command = arguments(spank), *guarded, *definition = getenv(travel.definition);
	uint32_t job, step;

	if (plugin_wanted() && definition && !spank_get_item(spank, S_JOB_ID, &job) && !spank_get_item(spank, S_JOB_STEPID, &step))
		submission_note(job, step, definition);
	/* With --multi-prog the first word is a file that srun is still going to read. srun has no way to ask; its own command
	 * line says it, abbreviated or not. Mistaken for it, an application's own --mu... costs nothing but the protection. */
	if (!plugin_wanted() || called_with("\0--mu", 5) || !command)
		return 0;
	name_misplaced(command);
	if (asprintf(&guarded, ABSENT "%s", command[0]) < 0)
		return -1;
	command[0] = guarded;
	return 0;
}

/* Takes away what local_user_init put in front of the command, in place. */
static void clear_the_way(spank_t spank)
{
	char **command = arguments(spank);

	if (command && strncmp(command[0], ABSENT, strlen(ABSENT)) == 0)
		memmove(command[0], command[0] + strlen(ABSENT), strlen(command[0]) - strlen(ABSENT) + 1);
}

/* The number of the mount namespace that this process is in, 0 if that is not to be had. */
static int64_t own_mounts(void)
{
	struct stat status = { 0 };

	return stat("/proc/self/ns/mnt", &status) ? 0 : (int64_t)status.st_ino;
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	spank_context_t context = spank_context();
	uid_t uid = 0;

	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		plugin_compare("environments");
	if (!plugin_wanted())
		return 0;
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		plugin_submit(&travel);
	if (context != S_CTX_REMOTE || !(plugin_real_step(spank) || plugin_script(spank, &travel) == PIOLET_SCRIPT_INSIDE))
		return 0;
	clear_the_way(spank);
	/* What the daemon without privileges answers would be done as root. */
	if (spank_get_item(spank, S_JOB_UID, &uid) || uid == 0)
		fail(&state.failure, "start it as another user", "a step of root has no environment");
	if (state.fd < 0 && !state.failure.set) {
		state.deadline_ms = now_ms() + plugin.timeout_s * 1000;
		state.mounts = own_mounts();
		state.fd = plugin_announce(spank, PIOLET_PLUGIN_ENVIRONMENT, &travel, &state.failure);
	}
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
	entries = slurp(reply->environment, PIOLET_ENVIRONMENT_MAX, &got);
	rc = entries && got == size ? environment_check(entries, size, f) :
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
	char **argv = arguments(spank);

	if (!reply->ready->entrypoint[0])
		return 0;
	memcpy(program, reply->ready->entrypoint, sizeof(program));
	if (!argv || spank_setenv(spank, "PIOLET_ARGV0", argv[0], 1) != ESPANK_SUCCESS)
		return fail(f, "set entrypoint = false", "the image's entrypoint cannot be put in front of the command");
	argv[0] = program;
	return 0;
}

/* A batch script lies in slurmd's spool directory, which is in no container: its interpreter is given it as an open file. */
static int put_script(spank_t spank, struct failure *f)
{
	static char program[32];
	char **argv = arguments(spank);
	int fd = argv ? open(argv[0], O_RDONLY) : -1;

	if (fd < 0)
		return fail(f, NULL, "the batch script cannot be opened: %s", strerror(errno));
	snprintf(program, sizeof(program), "/proc/self/fd/%d", fd);
	argv[0] = program;
	return 0;
}

static int enter(spank_t spank, bool script, struct failure *f)
{
	struct reply reply;
	int rc;

	if ((script && put_script(spank, f) < 0) || channel_peek(state.fd, state.deadline_ms, &reply, f) < 0)
		return -1;
	/* Slurm may have put the task among mounts of its job's own, another /tmp for one; so then has to be the container. */
	state.mounts = reply.ready->header.reserved ? reply.ready->header.reserved : state.mounts;
	rc = reply.user_ns < 0 || (state.mounts && state.mounts == own_mounts()) ? apply_environment(spank, &reply, f) :
	     fail(f, "tell an administrator: docs/admin.md, jobs with a /tmp of their own",
		  "the job has mounts of its own that pioletd did not find: the container would have the node's /tmp");
	if (rc == 0 && reply.user_ns >= 0)
		launcher_replace(plugin.entry);
	if (rc == 0)
		rc = join_namespaces(&reply, f) < 0 ? -1 : put_entrypoint(spank, &reply, f);
	reply_close(&reply);
	return rc;
}

/* Says to the user why this node's tasks do not run, and in one line each to slurmd's log and to pioletd, which knows it only if it
 * refused. A user's own words are to make no line of their own in a log. */
static void tell_failure(spank_t spank, const struct failure *f)
{
	struct piolet_error told = { { PIOLET_MAGIC, PIOLET_VERSION, PIOLET_ERROR, sizeof(told), 0 }, "", "" };
	uint32_t job = 0, step = 0, uid = 0;
	char node[64] = "";

	gethostname(node, sizeof(node) - 1);
	dprintf(STDERR_FILENO, "piolet: error: node %s: %s%s%s\n", node, f->message, f->hint[0] ? "\nhint: " : "", f->hint);
	spank_get_item(spank, S_JOB_ID, &job);
	spank_get_item(spank, S_JOB_STEPID, &step);
	spank_get_item(spank, S_JOB_UID, &uid);
	snprintf(told.message, sizeof(told.message), "%s", f->message);
	for (unsigned char *c = (unsigned char *)told.message; *c; c++)
		*c = *c < ' ' || *c == 127 ? '?' : *c;
	slurm_info("piolet: step %u.%u of uid %u failed: %s", job, step, uid, told.message);
	send(state.fd, &told, sizeof(told), MSG_NOSIGNAL | MSG_DONTWAIT);
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
	struct failure failure = state.failure;
	int task = 0, rc = -1;
	char script = plugin_script(spank, &travel);

	if (!plugin_wanted() || !(plugin_real_step(spank) || script == PIOLET_SCRIPT_INSIDE))
		return 0;
	if (!failure.set && state.fd >= 0)
		rc = enter(spank, script, &failure);
	else if (!failure.set)
		fail(&failure, NULL, "the step was not announced to pioletd");
	/* All tasks of a node fail alike: one of them says so. */
	spank_get_item(spank, S_TASK_ID, &task);
	if (rc && task == 0)
		tell_failure(spank, &failure);
	channel_close(&state.fd);
	/* The sruns of a batch script take them from it. */
	if (!script) {
		spank_unsetenv(spank, travel.definition);
		spank_unsetenv(spank, travel.request);
	}
	return rc;
}

int slurm_spank_exit(spank_t spank, int argc, char **argv)
{
	channel_close(&state.fd);
	return 0;
}
