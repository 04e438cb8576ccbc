/* vet.c - the hooks of --vet, which run in srun, sbatch and salloc, as the user.
 *
 *   sbatch, salloc   init_post_opt: the protocol is checked, before anything is queued
 *   srun in a job    init_post_opt: the nodes are vetted before srun asks for its step
 *   srun by itself   local_user_init: as soon as srun has its nodes
 *
 * The `piolet` command does the vetting, by a step of its own, and decides. It hands back nothing (go on) or
 * the words of a command (become that: this srun again, without the bad nodes), or ends with a status that becomes
 * ours. Where all nodes were good it leaves a record, which spares the later sruns of the job the command. On the
 * nodes this plugin only says that a batch script starts nothing that is vetted.
 */
#define _GNU_SOURCE
#include "plugin.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#pragma GCC visibility push(default)
SPANK_PLUGIN(piolet_vet, 1)
#pragma GCC visibility pop

/* Set for an srun that has become itself again after its vetting, and read by that one only. */
#define VETTED "PIOLET_VETTED"
/* Where sbatch or salloc was called. A protocol that its sruns inherit is a file there, wherever their script has gone. */
#define FROM "SLURM_PIOLET_VET_FROM"
#define WORDS_MAX 4096

static struct {
	bool vetted;
	char **environment;	/* as srun was started: it adds its job's variables, which are not the next srun's */
} state = { false, NULL };

static const struct travel travel = { .option = "vet", .definition = "SLURM_PIOLET_VET_SCRIPT" };

static struct spank_option option = {
	.name = "vet",
	.arginfo = "PROTOCOL[,report=PATH][,min_nodes=N][,retries=N][,budget=30s][,on_inconclusive=...]",
	.usage = "check the nodes against PROTOCOL first, and leave bad ones out; 'none' checks nothing",
	.has_arg = 1,
	.cb = plugin_option,
};

/* Splits NUL-terminated words; returns how many, or 0 where they are not well-formed. */
static size_t split(char *bytes, size_t length, char **words, size_t most)
{
	size_t count = 0;

	if (!length || bytes[length - 1])
		return 0;
	for (char *word = bytes; word < bytes + length; word += strlen(word) + 1) {
		if (count + 1 >= most)
			return 0;
		words[count++] = word;
	}
	words[count] = NULL;
	return count;
}

/* Runs `piolet vet gate`; returns to let srun go on, or never. `job` is 0 where srun has no nodes yet: returns what is said of
 * sbatch's script, or NULL. */
static char *gate(const char *stage, uint32_t job)
{
	static char *words[WORDS_MAX];
	struct failure f = { 0 };
	size_t length;
	char number[16], *mine = command_line(&length), *result;
	const char *head[] = { plugin.command, "--config", plugin.config, "vet", "gate", "--stage", stage, "--job", number,
			       "--result-fd", "3", "--", plugin.request };
	size_t count = sizeof(head) / sizeof(head[0]), own;
	int status = -1;

	snprintf(number, sizeof(number), "%u", job);
	memcpy(words, head, sizeof(head));
	own = mine ? split(mine, length, words + count, WORDS_MAX - count) : 0;
	if (!own)
		fail(&f, NULL, "the command line is too long to be vetted");
	else
		status = command_run(words, 1 << 20, &result, &length, &f);
	if (f.set)
		plugin_refuse(&f);
	if (status)
		exit(status > 0 ? status : EXIT_FAILURE);
	free(mine);
	if (!result || !job)
		return result;
	/* Other nodes are vetted again; the words say how many tries are left. */
	if (!state.environment || !split(result, length, words, WORDS_MAX))
		fail(&f, NULL, "the vetting handed back a malformed command");
	else
		execve("/proc/self/exe", words, state.environment + (strcmp(stage, "allocated") == 0));
	fail(&f, NULL, "cannot start srun again: %s", strerror(errno));
	plugin_refuse(&f);
}

/* Returns a copy of the environment with the mark that says "vetted"; NULL where memory is short. */
static char **copy_environment(void)
{
	size_t count = 0, next = 1;
	char **copy;

	while (environ[count])
		count++;
	copy = calloc(count + 2, sizeof(*copy));
	if (!copy)
		return NULL;
	copy[0] = VETTED "=1";
	for (size_t i = 0; i < count; i++)
		if (strncmp(environ[i], VETTED "=", sizeof(VETTED)) != 0 && !(copy[next++] = strdup(environ[i])))
			return NULL;
	return copy;
}

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
	if (spank_context() == S_CTX_LOCAL)
		state.environment = copy_environment();
	return plugin_init(spank, "piolet_vet", &option, argc, argv);
}

/* Returns whether the nodes of this job were vetted a short while ago and are all good. */
static bool vetted_before(void)
{
	static struct submission record;

	/* An srun that joins another job; the application's own words are taken for that, too, which costs a moment. */
	return !called_with("--jobi", 6) && submission_cached("vet", plugin.config, plugin.request, &record);
}

static bool wanted(void)
{
	return plugin_wanted() && !state.vetted;
}

/* An option of srun's own fires the callback once more, and is a file where srun is. */
static void work_out(void)
{
	const char *from = getenv(FROM);
	char *request;

	if (plugin.given != 1 || !getenv("SLURM_SPANK__SLURM_SPANK_OPTION_piolet_vet_vet") || !from || plugin.request[0] == '/' ||
	    asprintf(&request, "%s/%s", from, plugin.request) < 0)
		return;
	free(plugin.request);
	plugin.request = request;
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	spank_context_t context = spank_context();
	const char *job = getenv("SLURM_JOB_ID");
	char directory[PATH_MAX];

	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR)
		return 0;
	state.vetted = getenv(VETTED) != NULL;
	unsetenv(VETTED);
	if (context == S_CTX_ALLOCATOR)
		plugin_compare("protocols");
	if (!wanted())
		return 0;
	if (context == S_CTX_ALLOCATOR) {
		if (getcwd(directory, sizeof(directory)))
			setenv(FROM, directory, 1);
		setenv(travel.definition, gate("submit", 0) ?: "", 1);
		return 0;
	}
	if (!job)
		return 0;
	work_out();
	if (!vetted_before())
		gate("step", (uint32_t)strtoul(job, NULL, 10));
	state.vetted = true;
	return 0;
}

/* srun has made an allocation of its own. Where it runs inside one, init_post_opt has done the work. */
int slurm_spank_local_user_init(spank_t spank, int argc, char **argv)
{
	uint32_t job = 0;

	if (wanted() && spank_get_item(spank, S_JOB_ID, &job) == ESPANK_SUCCESS)
		gate("allocated", job);
	return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
	plugin_script(spank, &travel);
	return 0;
}
