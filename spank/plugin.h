/* plugin.h - what the hooks of the plugins have in common; of the shims, only these parts know SPANK.
 *
 * A plugin is called by name, with nothing of its own in hand, so its state has to be static. Each plugin is a library
 * of its own: each has a `plugin` of its own.
 */
#ifndef PIOLET_PLUGIN_H
#define PIOLET_PLUGIN_H

#include "shim.h"

#pragma GCC visibility push(default)
#include <slurm/slurm.h>
#include <slurm/spank.h>
#pragma GCC visibility pop

struct plugin {
	const char *command, *config, *socket, *entry;	/* words of plugstack.conf, or their defaults */
	long timeout_s;
	char *request;		/* the option's last value, or NULL where it was not given */
	unsigned given;		/* how often the option's callback fired */
};

extern struct plugin plugin;

/* The option's callback. */
int plugin_option(int value, const char *argument, int remote);

/* Reads the words after the plugin's path in plugstack.conf (what is wrong is logged and left out), and tells Slurm of the
 * option, if there is one; not in slurmd, which has no use for it. */
int plugin_init(spank_t spank, const char *name, struct spank_option *option, int argc, char **argv);

/* Whether the option was given, and not as 'none'. */
bool plugin_wanted(void);

/* In srun, sbatch and salloc: ends it with an error, before anything is asked for. A return of -1 would do so, too, but
 * Slurm would add two lines about plugins, below which a user has to find ours. */
__attribute__((noreturn)) void plugin_refuse(const struct failure *f);

/* The variables in which a definition travels from srun to slurmstepd, and from sbatch to the sruns of its script. Slurm
 * carries SLURM_* even with --export=NONE. */
struct travel {
	const char *option;	/* its name */
	const char *verb;	/* of the piolet command that makes it: `piolet VERB submit` */
	const char *definition, *request;
	const char *inherited;	/* Slurm's own variable for the option that sbatch was given */
};

/* In srun, sbatch and salloc: makes the definition, unless it came along; refuses what is wrong. */
void plugin_submit(const struct travel *travel);

/* In srun, sbatch and salloc: refuses a part of a heterogeneous step or job that asks for something else than those before.
 * Messages call it `what`, in the plural. */
void plugin_compare(const char *what);

/* In slurmstepd and its tasks: what the submission says of the batch script that this is to become, PIOLET_SCRIPT_...; 0 where
 * it says nothing, and for every other step. The task of a script that starts no step says so in the job's output. */
char plugin_script(spank_t spank, const struct travel *travel);

/* In slurmstepd: sends START to pioletd and does not wait. Returns the connection, or -1. */
int plugin_announce(spank_t spank, uint32_t number, const struct travel *travel, struct failure *f);

/* Extern and interactive steps run on the host, and so do batch scripts but for PIOLET_SCRIPT_INSIDE: their ids are above
 * every real step's. */
bool plugin_real_step(spank_t spank);

#endif
