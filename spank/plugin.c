/* plugin.c - what the hooks of the plugins have in common; see plugin.h. */
#define _GNU_SOURCE
#include "plugin.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NONE "none"
#define TIMEOUT_MAX_S 3600

struct plugin plugin = { "/usr/bin/piolet", "/etc/piolet/piolet.toml", "/run/piolet/node.sock", "/usr/libexec/piolet/piolet-entry", 30, NULL, 0 };

int plugin_option(int value, const char *argument, int remote)
{
	/* From sbatch to its sruns, Slurm writes an argument that was not given as this word. */
	char *copy = strdup(argument && strcmp(argument, "(null)") != 0 ? argument : "");

	if (!copy)
		return -1;
	free(plugin.request);
	plugin.request = copy;
	plugin.given++;
	return 0;
}

static void arguments_read(const char *name, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (strncmp(argv[i], "command=", 8) == 0)
			plugin.command = argv[i] + 8;
		else if (strncmp(argv[i], "config=", 7) == 0)
			plugin.config = argv[i] + 7;
		else if (strncmp(argv[i], "socket=", 7) == 0)
			plugin.socket = argv[i] + 7;
		else if (strncmp(argv[i], "entry=", 6) == 0)
			plugin.entry = argv[i] + 6;
		else if (strncmp(argv[i], "timeout=", 8) == 0) {
			char *end;
			long seconds = strtol(argv[i] + 8, &end, 10);

			if (*end || seconds < 1 || seconds > TIMEOUT_MAX_S)
				slurm_error("%s: timeout=%s in plugstack.conf is not 1 to %d seconds", name, argv[i] + 8,
					    TIMEOUT_MAX_S);
			else
				plugin.timeout_s = seconds;
		} else
			slurm_error("%s: unknown argument '%s' in plugstack.conf", name, argv[i]);
	}
}

int plugin_init(spank_t spank, const char *name, struct spank_option *option, int argc, char **argv)
{
	if (spank_context() == S_CTX_SLURMD)
		return 0;
	arguments_read(name, argc, argv);
	return !option || spank_option_register(spank, option) == ESPANK_SUCCESS ? 0 : -1;
}

bool plugin_wanted(void)
{
	return plugin.request && strcmp(plugin.request, NONE) != 0;
}

void plugin_refuse(const struct failure *f)
{
	/* An empty message: the piolet command has told the user already. */
	if (f->message[0])
		dprintf(STDERR_FILENO, "piolet: error: %s%s%s\n", f->message, f->hint[0] ? "\nhint: " : "", f->hint);
	exit(EXIT_FAILURE);
}

/* Slurm calls once for each part of a heterogeneous step or job. The nodes of a step get one value of the option, the last; the
 * sruns of a job's script that of its first part. Running a part in another's container would be worse than not at all. */
void plugin_compare(const char *what)
{
	static char *first;
	const char *request = plugin.request ? plugin.request : NONE;
	bool job = spank_context() == S_CTX_ALLOCATOR;
	struct failure failure = { 0 };

	if (first && strcmp(first, request) != 0) {
		fail(&failure, job ? "give all parts the same one, and its steps theirs: srun --het-group=N with the option" :
				     "give all parts the same one, or start them as steps of their own",
		     "the parts of a heterogeneous %s cannot have different %s ('%s' and '%s')", job ? "job" : "step", what,
		     first, request);
		plugin_refuse(&failure);
	}
	first = first ? first : strdup(request);
}

/* An srun in a batch script or an salloc: the definition was made at submit time and is still here.
 * An option of srun's own fires the callback once more. */
static bool inherited(const struct travel *travel)
{
	const char *request = getenv(travel->request);

	return plugin.given == 1 && getenv(travel->inherited) && getenv(travel->definition) && request &&
	       strcmp(request, plugin.request) == 0;
}

void plugin_submit(const struct travel *travel)
{
	struct submission submission;
	struct failure failure = { 0 };
	char *value;

	if (inherited(travel) && (!MOVED || strcmp(travel->verb, "env") != 0))
		return;
	/* What the cache has says nothing of sbatch's script. */
	if (submission_get(travel->verb, plugin.command, plugin.config, plugin.request, spank_context() == S_CTX_LOCAL, &submission, &failure) < 0)
		plugin_refuse(&failure);
	value = strndup(submission.definition, submission.definition_length);
	submission_free(&submission);
	if (!value || setenv(travel->definition, value, 1) < 0 || setenv(travel->request, plugin.request, 1) < 0) {
		fail(&failure, NULL, "out of memory");
		plugin_refuse(&failure);
	}
	free(value);
}

bool plugin_real_step(spank_t spank)
{
	uint32_t step = 0;

	return !spank_get_item(spank, S_JOB_STEPID, &step) && step < SLURM_INTERACTIVE_STEP;
}

char plugin_script(spank_t spank, const struct travel *travel)
{
	static char value[PIOLET_DEFINITION_MAX + 1];
	uint32_t step = 0, task = 0;

	if (!plugin_wanted() || spank_get_item(spank, S_JOB_STEPID, &step) || step != SLURM_BATCH_SCRIPT)
		return 0;
	spank_getenv(spank, travel->definition, value, sizeof(value));
	if (value[0] == PIOLET_SCRIPT_BARE && !spank_get_item(spank, S_TASK_ID, &task)) {
		dprintf(STDERR_FILENO, "piolet: warning: this script starts nothing by srun: --%s does nothing here\n"
			"hint: put srun in front of what it is meant for\n", travel->option);
		/* A job that is submitted from here has another script. */
		spank_setenv(spank, travel->definition, value + 1, 1);
	}
	return value[0];
}

int plugin_announce(spank_t spank, uint32_t number, const struct travel *travel, struct failure *f)
{
	struct piolet_start start = { .plugin = number };
	gid_t *groups = NULL;
	int count = 0, fd = -1;
	char *definition = malloc(PIOLET_DEFINITION_MAX + 1), *message = malloc(PIOLET_START_MAX);
	const char *node = getenv("SLURMD_NODENAME");
	size_t length;

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
	if (spank_getenv(spank, travel->definition, definition, PIOLET_DEFINITION_MAX + 1)) {
		fail(f, "submit again on a node where the plugin is installed",
		     "what --%s asks for did not come with the step", travel->option);
		goto out;
	}
	start.groups = (uint32_t)count;
	start.definition = (uint32_t)strlen(definition);
	start.timeout_ms = (uint32_t)plugin.timeout_s * 1000;
	/* slurmd leaves it to slurmstepd; a host may have another name than its node. */
	if (node)
		snprintf(start.node, sizeof(start.node), "%s", node);
	else
		gethostname(start.node, sizeof(start.node) - 1);
	length = start_encode(&start, groups, definition, message, PIOLET_START_MAX, f);
	if (!length)
		goto out;
	fd = channel_open(plugin.socket, f);
	if (fd >= 0 && channel_send(fd, message, length, f) < 0)
		channel_close(&fd);
out:
	free(definition);
	free(message);
	return fd;
}
