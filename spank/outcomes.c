/* outcomes.c - how tasks end, said to pioletd; off where plugstack.conf does not load it. Nothing waits for it, and every
 * hook returns 0. Of a step it is one datagram a node, however many tasks it had: how each ended is added up here.
 *
 *   slurmstepd   task_exit: add the task's status
 *                exit: send all to pioletd, or count one in a file beside its socket
 *   srun         on_exit: where srun's status is not 0, `piolet central ended` may say a line of what is known of the nodes
 */
#define _GNU_SOURCE
#include "plugin.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#pragma GCC visibility push(default)
SPANK_PLUGIN(piolet_outcomes, 1)
#pragma GCC visibility pop

/* srun's user waits no longer for a line. */
#define LINE_S 2

static struct piolet_outcome outcome = {
	.header = { PIOLET_MAGIC, PIOLET_VERSION, PIOLET_OUTCOME, sizeof(outcome), 0 },
};

static struct {
	uint32_t job, step;	/* in srun: of the step that was launched; job is 0 before */
	pid_t pid;
} state;

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	plugin.socket = "/run/piolet/events.sock";
	return plugin_init(spank, "piolet_outcomes", NULL, argc, argv);
}

static uint64_t number(spank_t spank, const char *variable, uint64_t otherwise)
{
	char text[24];

	return spank_getenv(spank, variable, text, sizeof(text)) == ESPANK_SUCCESS ? strtoull(text, NULL, 10) : otherwise;
}

int slurm_spank_task_exit(spank_t spank, int argc, char **argv)
{
	uint32_t *numbers[] = { &outcome.job, &outcome.step, &outcome.uid, &outcome.restarts, &outcome.array, &outcome.array_task };
	spank_item_t items[] = { S_JOB_ID, S_JOB_STEPID, S_JOB_UID, S_SLURM_RESTART_COUNT, S_JOB_ARRAY_ID, S_JOB_ARRAY_TASK_ID };
	const char *node = getenv("SLURMD_NODENAME");
	int status = 0;
	uint32_t task = 0, i = 0;

	if (outcome.job == 0) {
		for (size_t item = 0; item < sizeof(items) / sizeof(items[0]); item++)
			spank_get_item(spank, items[item], numbers[item]);
		/* Of a batch script Slurm's item says 0; and of a component the job is the component's. */
		outcome.restarts = (uint32_t)number(spank, "SLURM_RESTART_COUNT", outcome.restarts);
		outcome.het_job = (uint32_t)number(spank, "SLURM_JOB_ID", 0);
		outcome.end = number(spank, "SLURM_JOB_END_TIME", 0);
		if (outcome.array_task == NO_VAL)
			outcome.array = outcome.array_task = 0;
		snprintf(outcome.node, sizeof(outcome.node), "%s", node ? node : "");
	}
	if (spank_get_item(spank, S_TASK_EXIT_STATUS, &status) || spank_get_item(spank, S_TASK_GLOBAL_ID, &task))
		return 0;
	while (i < outcome.ways && outcome.ended[i].status != status)
		i++;
	if (i == PIOLET_WAYS_MAX) {
		outcome.others++;
		return 0;
	}
	if (i == outcome.ways)
		outcome.ended[outcome.ways++] = (struct piolet_ended){ .status = status, .first = task };
	outcome.ended[i].tasks++;
	return 0;
}

static void send_outcome(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), count;
	char lost[sizeof(address.sun_path) + 8];

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", plugin.socket);
	if (sendto(fd, &outcome, sizeof(outcome), MSG_NOSIGNAL, (struct sockaddr *)&address, sizeof(address)) < 0) {
		snprintf(lost, sizeof(lost), "%s.lost", address.sun_path);
		count = open(lost, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (count < 0 || write(count, "", 1) != 1)
			slurm_info("piolet: pioletd took no outcome, and it is counted nowhere");
		channel_close(&count);
	}
	channel_close(&fd);
}

/* SPANK does not tell srun's status, but the C library does. This stays in the process for it (-z nodelete). A user who
 * pressed Ctrl-C knows why it ended; a vetting's step is no step of the user's. */
static void ended(int status, void *nothing)
{
	char job[16], step[16], code[16], *result = NULL;
	const char *words[] = { plugin.command, "--config", plugin.config, "central", "ended", "--job", job, "--step", step,
				"--status", code, NULL };
	struct failure f = { 0 };
	size_t length;

	if (status == 0 || status == 128 + SIGINT || getpid() != state.pid || getenv("PIOLET_VETTING"))
		return;
	snprintf(job, sizeof(job), "%u", state.job);
	snprintf(step, sizeof(step), "%u", state.step);
	snprintf(code, sizeof(code), "%d", status);
	command_seconds = LINE_S;
	command_run((char *const *)words, PIOLET_REPLY_MAX, &result, &length, &f);
	free(result);
}

/* In srun, when the step is about to be launched. Of a heterogeneous job Slurm calls once, and names one of its components; srun's
 * environment, which the command inherits, has the job as a whole. */
int slurm_spank_local_user_init(spank_t spank, int argc, char **argv)
{
	if (state.pid || spank_get_item(spank, S_JOB_ID, &state.job) || spank_get_item(spank, S_JOB_STEPID, &state.step))
		return 0;
	state.pid = getpid();
	on_exit(ended, NULL);
	return 0;
}

int slurm_spank_exit(spank_t spank, int argc, char **argv)
{
	bool step = outcome.step < SLURM_INTERACTIVE_STEP || outcome.step == SLURM_BATCH_SCRIPT;

	if (spank_context() == S_CTX_REMOTE && outcome.job && step)
		send_outcome();
	return 0;
}
