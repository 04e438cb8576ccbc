/* score.c - the hooks of --score. Whatever happens to scoring, the step does not notice: past srun's own check of the
 * option, every hook returns 0, and none waits but for a full queue of pioletd's: see channel.c.
 *
 *   srun, sbatch, salloc   init_post_opt: the request is checked, before anything is queued
 *   slurmstepd             init_post_opt: connect to pioletd's sampler and send START; no answer is awaited
 *   each task              task_init_privileged: look which GPUs the step has; later Slurm leaves a task its own only
 *                          task_init: tell them, which begins the sampling; a container is made by then
 *   slurmstepd             exit: close the connection, which ends the sampling
 *   srun                   exit: `piolet score end` shows the score on stderr
 */
#define _GNU_SOURCE
#include "plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#pragma GCC visibility push(default)
SPANK_PLUGIN(piolet_score, 1)
#pragma GCC visibility pop

static const struct travel travel = {
	.option = "score",
	.verb = "score",
	.definition = "SLURM_PIOLET_SCORE",
	.request = "SLURM_PIOLET_SCORE_REQUEST",
	.inherited = "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_score_score",
};

static struct {
	int fd;			/* the connection to pioletd, or -1 */
	uint32_t job, step;	/* in srun: of the step that was launched; job is 0 before */
	struct failure failure;	/* why the step is not scored: a warning of its first task */
} state = { -1, 0, 0, { false, "", "" } };

static struct piolet_gpus gpus = {
	.header = { PIOLET_MAGIC, PIOLET_VERSION, PIOLET_GPUS, sizeof(gpus), 0 },
};

static struct spank_option option = {
	.name = "score",
	.arginfo = "interval=100ms,out=DIR,html,collector=NAME,label=TEXT",
	.usage = "collect GPU and host counters while the step runs, and show how saturated it was; 'none': do not",
	.has_arg = 2,
	.cb = plugin_option,
};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	plugin.socket = "/run/piolet/score.sock";
	return plugin_init(spank, "piolet_score", &option, argc, argv);
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	spank_context_t context = spank_context();

	if (context == S_CTX_ALLOCATOR)
		plugin_compare("scores");
	if (!plugin_wanted())
		return 0;
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR)
		plugin_submit(&travel);
	else if (context == S_CTX_REMOTE && plugin_real_step(spank) && state.fd < 0 && !state.failure.set)
		state.fd = plugin_announce(spank, PIOLET_PLUGIN_SCORE, &travel, &state.failure);
	return 0;
}

/* In srun, when the step is about to be launched. */
int slurm_spank_local_user_init(spank_t spank, int argc, char **argv)
{
	if (!plugin_wanted() || spank_get_item(spank, S_JOB_ID, &state.job) ||
	    spank_get_item(spank, S_JOB_STEPID, &state.step))
		state.job = 0;
	return 0;
}

/* Slurm says which GPUs a step has by their numbers on the node, and by UUID where they are parts of GPUs, which have no
 * numbers of their own. Where it manages GPUs it sets or clears both. Not SLURM_JOB_GPUS: that one comes from the user's
 * environment, whatever the step has. */
int slurm_spank_task_init_privileged(spank_t spank, int argc, char **argv)
{
	char numbers[sizeof(gpus.gpus)] = "";
	spank_err_t parts, wholes;

	if (state.fd < 0)
		return 0;
	spank_get_item(spank, S_JOB_NNODES, &gpus.nodes);
	if (spank_getenv(spank, "SLURM_RESTART_COUNT", numbers, sizeof(numbers)) == ESPANK_SUCCESS)
		gpus.restarts = (uint32_t)strtoul(numbers, NULL, 10);
	wholes = spank_getenv(spank, "SLURM_STEP_GPUS", numbers, sizeof(numbers));
	parts = spank_getenv(spank, "CUDA_VISIBLE_DEVICES", gpus.gpus, sizeof(gpus.gpus));
	if (wholes == ESPANK_NOSPACE || parts == ESPANK_NOSPACE) {
		fail(&state.failure, NULL, "the list of its GPUs is too long");
		channel_close(&state.fd);
	} else if (wholes == ESPANK_SUCCESS && !strstr(gpus.gpus, "MIG-"))
		memcpy(gpus.gpus, numbers, sizeof(numbers));
	return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
	char node[64] = "";
	int task = 0;

	plugin_script(spank, &travel);
	if (!plugin_wanted() || !plugin_real_step(spank))
		return 0;
	/* The first task's message counts, and one that does not fit into the queue is not missed. */
	if (state.fd >= 0)
		send(state.fd, &gpus, sizeof(gpus), MSG_NOSIGNAL | MSG_DONTWAIT);
	/* The first task of each node says why: nodes fail one by one. */
	else if (spank_get_item(spank, S_TASK_ID, &task) == ESPANK_SUCCESS && task == 0) {
		gethostname(node, sizeof(node) - 1);
		dprintf(STDERR_FILENO, "piolet: warning: node %s: the step runs, but is not scored: %s%s%s\n", node,
			state.failure.set ? state.failure.message : "it was not announced",
			state.failure.hint[0] ? "\nhint: " : "", state.failure.hint);
	}
	channel_close(&state.fd);
	spank_unsetenv(spank, travel.definition);
	spank_unsetenv(spank, travel.request);
	return 0;
}

/* In srun, when the step has ended. The command's wait is bounded, and its exit status is not srun's. */
static void show(void)
{
	char job[16], step[16], *result = NULL;
	const char *words[] = { plugin.command, "--config", plugin.config, "score", "end", "--job", job, "--step", step, NULL };
	struct failure f = { 0 };
	size_t length;

	snprintf(job, sizeof(job), "%u", state.job);
	snprintf(step, sizeof(step), "%u", state.step);
	command_run((char *const *)words, PIOLET_REPLY_MAX, &result, &length, &f);
	free(result);
}

int slurm_spank_exit(spank_t spank, int argc, char **argv)
{
	if (spank_context() == S_CTX_LOCAL && state.job) {
		show();
		state.job = 0;
	}
	channel_close(&state.fd);
	return 0;
}
