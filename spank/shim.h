/* shim.h - what the parts of a plugin share.
 *
 *   message.c    messages and records as bytes: pure functions but for stat(2) and record_notes; what the fuzzers drive
 *   channel.c    the connection to pioletd: connect, send, and read the shared answer under a deadline
 *   join.c       a task enters the namespaces that it was handed
 *   submit.c     in srun, sbatch and salloc: the cached record, or the `piolet` command
 *   command.c    in srun, sbatch and salloc: run the `piolet` command
 *   plugin.c     what the hooks of the plugins have in common
 *   environment.c vet.c score.c   the hooks of each option; these, outcomes.c and plugin.c know SPANK
 *
 * Nothing here parses TOML, JSON or YAML, and nothing forks in slurmstepd.
 */
#ifndef PIOLET_SHIM_H
#define PIOLET_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

_Static_assert(sizeof(struct piolet_header) == 16, "the wire has no padding");
_Static_assert(sizeof(struct piolet_start) == 112, "the wire has no padding");
_Static_assert(sizeof(struct piolet_ready) == 4376, "the wire has no padding");
_Static_assert(sizeof(struct piolet_error) == 2064, "the wire has no padding");
_Static_assert(sizeof(struct piolet_gpus) == 4096, "the wire has no padding");
_Static_assert(sizeof(struct piolet_outcome) == PIOLET_OUTCOME_LEAST + 8, "the wire has no padding");
_Static_assert(sizeof(struct piolet_record) == 24, "the wire has no padding");
_Static_assert(sizeof(struct piolet_dependency) == 56, "the wire has no padding");
_Static_assert(sizeof(struct piolet_start) + 4 * PIOLET_GROUPS_MAX + PIOLET_DEFINITION_MAX <= PIOLET_START_MAX,
	       "a START of the largest parts fits");

/* The first error wins: it is the cause, what follows is the consequence. */
struct failure {
	bool set;
	char message[1024];
	char hint[1024];
};

/* Notes the failure, unless there is one already. Always returns -1, so that `return fail(...)` reads well. */
int fail(struct failure *f, const char *hint, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define REPLY_DESCRIPTORS 3

struct reply {
	const struct piolet_ready *ready;	/* points into `bytes` */
	int user_ns, mount_ns, environment;	/* descriptors, or -1 */
	_Alignas(8) char bytes[PIOLET_REPLY_MAX];
};

/* message.c */
size_t start_encode(struct piolet_start *start, const uint32_t *groups, const char *definition, char *out,
		    size_t size, struct failure *f);
int reply_decode(struct reply *reply, size_t length, const int *descriptors, size_t count, struct failure *f);
int environment_check(const char *entries, size_t length, struct failure *f);
int record_check(const char *record, size_t length, const char *request, const char *directory,
		 const char **definition, size_t *definition_length, struct failure *f);
void record_notes(const char *record, int out);
uint64_t record_key(const char *request, const char *directory, const char *config, uid_t uid);

/* channel.c */
int64_t now_ms(void);
int channel_open(const char *path, struct failure *f);
int channel_send(int fd, const char *message, size_t length, struct failure *f);
int channel_peek(int fd, int64_t deadline_ms, struct reply *reply, struct failure *f);
void channel_close(int *fd);
void reply_close(struct reply *reply);

/* join.c */
int join_namespaces(const struct reply *reply, struct failure *f);

/* launcher.c; `program` is the entry program */
void launcher_replace(const char *program);

/* command.c */
char *slurp(int fd, size_t limit, size_t *length);
char *command_line(size_t *length);
bool called_with(const char *bytes, size_t size);
/* srun's own --chdir goes to the nodes with what it is for, and into no cache. An application's word that looks like it
 * costs a start of the command. */
#define MOVED (called_with("\0--chd", 6) || called_with("\0-D", 3))
extern unsigned command_seconds;	/* the command is ended after so many; 0: its own waits are bounded */
int command_run(char *const *words, size_t limit, char **result, size_t *length, struct failure *f);

/* submit.c */
struct submission {
	char *record;		/* owned */
	size_t length;
	const char *definition;	/* points into record */
	size_t definition_length;
};

int submission_get(const char *verb, const char *command, const char *config, const char *request, bool cached,
		   struct submission *s, struct failure *f);
bool submission_cached(const char *verb, const char *config, const char *request, struct submission *s);
bool submission_note(uint32_t job, uint32_t step, const char *definition);
void submission_free(struct submission *s);

#endif
